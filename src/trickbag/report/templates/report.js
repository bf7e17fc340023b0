"use strict";
// Tips, sorting, choice of metric, runs behind a number, theme. The page reads without it.
(() => {
  const $ = (query, from = document) => from.querySelector(query);
  const $$ = (query, from = document) => [...from.querySelectorAll(query)];
  const root = document.documentElement;
  const facts = JSON.parse($("#facts").textContent);
  const state = { metric: facts.primary, sort: "effect" };
  root.classList.add("js");

  // ---- tips: hover, focus, tap -------------------------------------------------------------
  const tip = $("#tip");
  let tipped = null, touch = false, last = null;

  const tipOf = (node) => {
    for (let e = node; e && e.closest && e.closest("svg.chart"); e = e.parentNode) {
      if (e.dataset.tip) return e;
      const title = [...e.children].find((child) => child.tagName === "title");
      if (title) {
        e.dataset.tip = title.textContent;
        if (!e.hasAttribute("aria-label")) e.setAttribute("aria-label", title.textContent.replace(/\n/g, ", "));
        title.remove();
        return e;
      }
    }
    return null;
  };
  const show = (element, x, y) => {
    const [head, ...rest] = element.dataset.tip.split("\n");
    const bold = document.createElement("b");
    bold.textContent = head;
    tip.replaceChildren(bold, ...rest.map((line) => Object.assign(document.createElement("span"), { textContent: line })));
    if (touch && element.tagName === "a") {
      tip.append(Object.assign(document.createElement("i"), { textContent: "Tap again for what is behind it." }));
    }
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = Math.min(Math.max(8, x + 14), innerWidth - box.width - 8);
    const above = y - box.height - 12;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${above > 8 ? above : Math.min(y + 18, innerHeight - box.height - 8)}px`;
    tipped = element;
  };
  const hide = () => { tip.hidden = true; tipped = null; };
  const point = (event) => {
    touch = event.pointerType === "touch";
    last = [event.clientX, event.clientY];
    const element = tipOf(event.target);
    if (!element) return hide();
    if (!touch) show(element, ...last);
  };
  addEventListener("pointerover", point);
  addEventListener("pointermove", point);
  addEventListener("pointerdown", (event) => { touch = event.pointerType === "touch"; });
  const focused = () => {
    last = null;
    const at = document.activeElement;
    const element = at && at.matches(":focus-visible") ? tipOf(at) : null;
    if (!element) return hide();
    const box = element.getBoundingClientRect();
    show(element, Math.min(box.left + box.width / 2, innerWidth / 2), box.top);
  };
  addEventListener("focusin", focused);
  addEventListener("focusout", hide);
  addEventListener("scroll", () => {
    if (!tipped) return;
    if (touch) return hide();
    if (!last) return focused();
    const element = tipOf(document.elementFromPoint(...last));
    if (element) show(element, ...last); else hide();
  }, { passive: true });
  addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });

  // ---- the runs behind a number ------------------------------------------------------------
  const table = $("#all-runs"), banner = $("#behind");
  const rows = table ? $$("tbody tr", table) : [];
  let origin = null;

  const reveal = (element) => {
    if (element && element.closest("tr.more.folded")) unfoldRows();
    for (let e = element; e; e = e.parentElement) if (e.tagName === "DETAILS") e.open = true;
  };
  const release = () => {
    for (const row of rows) { row.hidden = false; delete row.dataset.side; }
    if (banner) banner.hidden = true;
  };
  const isolate = (said, sides) => {
    release();
    const side = new Map();
    sides.forEach((found, i) => found.forEach((row) => side.set(row, i)));
    rows.forEach((row, i) => {
      const own = side.get(Number(row.dataset.row));
      row.hidden = own === undefined;
      if (own !== undefined && sides.length > 1) row.dataset.side = own === 0 ? "with" : "without";
    });
    $("span", banner).textContent = said;
    banner.hidden = false;
    reveal(table);
    banner.scrollIntoView({ block: "start" });
    banner.focus({ preventScroll: true });
  };
  const byRow = new Map(rows.map((row) => [Number(row.dataset.row), row]));
  const count = (found) => {
    const runs = new Set(found.map((row) => byRow.get(row).cells[byRow.get(row).cells.length - 1].textContent)).size;
    const said = `${runs} run${runs === 1 ? "" : "s"}`;
    return runs === found.length ? said : `${found.length} readings of ${said}`;
  };
  const follow = (kind, index) => {
    if (kind === "arm") {
      const own = rows.filter((row) => Number(row.dataset.arm) === index);
      if (!own.length) return false;
      const found = own.map((row) => Number(row.dataset.row));
      isolate(`${count(found)} of “${own[0].cells[0].textContent.trim()}”.`, [found]);
      return true;
    }
    const { label, sides } = facts[`${kind}s`][index];
    if (!sides[0].length && !sides[1].length) return false;
    const [plus, minus] = kind === "effect" ? ["with it", "without"] : ["of the first", "of the second"];
    isolate(`Behind “${label}”: ${count(sides[0])} ${plus}, ${count(sides[1])} ${minus}.`, sides);
    return true;
  };
  addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#']");
    if (!link) return;
    const drawn = link.closest("svg.chart");
    if (drawn && touch && tipped !== link) {
      event.preventDefault();
      const element = tipOf(event.target);
      if (element) show(element, event.clientX, event.clientY);
      return;
    }
    hide();
    const to = link.getAttribute("href").slice(1);
    const found = /^(effect|arm|comparison|overall)-(\d+)$/.exec(to);
    if (found && table && follow(found[1], Number(found[2]))) {
      origin = link;
      event.preventDefault();
      return;
    }
    if (to.startsWith("run-")) release();
    const target = document.getElementById(to);
    reveal(target);
    if (!target || !(state.metric !== facts.primary || state.sort !== "effect")) return;
    event.preventDefault();
    target.scrollIntoView({ block: "start" });
    remember(to);
  });
  if (banner) {
    $("[data-act=all]", banner).addEventListener("click", release);
    $("[data-act=back]", banner).addEventListener("click", () => {
      release();
      if (!origin) return;
      origin.scrollIntoView({ block: "center" });
      origin.focus({ preventScroll: true });
    });
  }

  // ---- recipes with one seed are many, and known least --------------------------------------
  const more = $$("tr.more"), moreButton = $("[data-more]");
  const unfoldRows = () => {
    for (const row of more) row.classList.remove("folded");
    if (moreButton) moreButton.hidden = true;
  };
  if (moreButton && more.length) {
    for (const row of more) row.classList.add("folded");
    moreButton.textContent = `Show ${more.length} more, of one seed each`;
    moreButton.hidden = false;
    moreButton.addEventListener("click", unfoldRows);
  }

  // ---- order -------------------------------------------------------------------------------
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  };
  const orders = {
    effect: (row) => (row.dataset.effect === "" ? "" : -row.dataset.effect),
    name: (row) => row.dataset.name,
    verdict: (row) => Number(row.dataset.verdict),
    cost: (row) => (row.dataset.cost === "" ? "" : Number(row.dataset.cost)),
  };
  const sortForest = () => {
    for (const chart of $$("[data-figure=forest] svg.chart")) {
      const groups = $$("g.row", chart);
      const places = groups.map((g) => /\s([\d.]+)\)/.exec(g.getAttribute("transform"))[1]).sort((a, b) => a - b);
      const key = orders[state.sort];
      const value = (g) => -g.dataset.effect || 0;
      groups.sort((a, b) => compare(key(a), key(b)) || compare(value(a), value(b)));
      groups.forEach((g, i) => {
        g.setAttribute("transform", `translate(0 ${places[i]})`);
        chart.append(g);
      });
    }
  };
  const valueOf = (cell) => {
    if (cell.dataset.v !== undefined) return cell.dataset.v === "" ? "" : Number(cell.dataset.v);
    const text = cell.textContent.trim();
    if (!cell.classList.contains("n")) return text === "–" ? "" : text;
    const number = parseFloat(text.replace(/[−]/g, "-").replace(/[×<\s\u202f[]/g, ""));
    return Number.isNaN(number) ? "" : number;
  };
  for (const sortable of $$("table.sortable")) {
    const heads = $$("thead th", sortable);
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        const first = head.classList.contains("n") && !head.hasAttribute("data-ascending") ? "descending" : "ascending";
        const next = now ? (now === "ascending" ? "descending" : "ascending") : first;
        if (more.length && sortable.contains(more[0])) unfoldRows();
        heads.forEach((h) => h.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", next);
        const body = $("tbody", sortable);
        const keyed = [...body.rows].map((row) => [valueOf(row.cells[column]), row]);
        const sign = next === "ascending" ? 1 : -1;
        keyed.sort(([a], [b]) => (a === "" || b === "" ? compare(a, b) : sign * compare(a, b)));
        body.append(...keyed.map(([, row]) => row));
      });
    });
  }

  // ---- choice of metric --------------------------------------------------------------------
  const packed = $("#figures");
  const original = Object.fromEntries($$("[data-figure]").map((place) => [place.dataset.figure, place.innerHTML]));
  let unpacked = null;
  const unpack = async () => {
    if (unpacked) return unpacked;
    const bytes = Uint8Array.from(atob(packed.textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    unpacked = JSON.parse(await new Response(stream).text());
    return unpacked;
  };
  const showMetric = async () => {
    const main = state.metric === facts.primary;
    const charts = main ? original : (await unpack())[state.metric];
    hide();
    for (const place of $$("[data-figure]")) place.innerHTML = charts[place.dataset.figure];
    sortForest();
    const index = facts.metrics.findIndex((m) => m.name === state.metric);
    for (const cell of $$(".m")) cell.classList.toggle("chosen", Number(cell.dataset.m) === index);
    for (const note of $$(".fixed-metric")) note.hidden = main;
    for (const note of $$(".main-metric")) note.hidden = !main;
    $("#said").textContent = `Figures show ${facts.metrics[index].label}.`;
    root.dataset.metric = state.metric;
  };

  // ---- controls and address ----------------------------------------------------------------
  const remember = (at) => {
    const kept = new URLSearchParams();
    if (state.metric !== facts.primary) kept.set("metric", state.metric);
    if (state.sort !== "effect") kept.set("sort", state.sort);
    if (at) kept.set("at", at);
    try { history.replaceState(null, "", `#${kept}`); } catch { /* not allowed here */ }
  };
  const asked = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
  const choose = $("#metric"), order = $("#order"), theme = $("#theme");
  if (choose && packed && typeof DecompressionStream === "function") {
    choose.closest("[hidden]").hidden = false;
    choose.addEventListener("change", () => { state.metric = choose.value; remember(); showMetric(); });
    if (facts.metrics.some((m) => m.name === asked.get("metric"))) {
      choose.value = state.metric = asked.get("metric");
      showMetric();
    }
  }
  if (order) {
    order.closest("[hidden]").hidden = false;
    order.addEventListener("change", () => { state.sort = order.value; remember(); sortForest(); });
    if ($$("option", order).some((option) => option.value === asked.get("sort"))) {
      order.value = state.sort = asked.get("sort");
      sortForest();
    }
  }
  const at = asked.get("at") && document.getElementById(asked.get("at"));
  if (at) at.scrollIntoView({ block: "start" });
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const paint = () => {
    const now = root.dataset.theme || (dark.matches ? "dark" : "light");
    theme.setAttribute("aria-pressed", String(now === "dark"));
    return now;
  };
  theme.hidden = false;
  try {
    const kept = localStorage.getItem("trickbag-theme");
    if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  } catch { /* not allowed here */ }
  theme.addEventListener("click", () => {
    root.dataset.theme = paint() === "dark" ? "light" : "dark";
    try { localStorage.setItem("trickbag-theme", root.dataset.theme); } catch { /* not allowed here */ }
    paint();
  });
  dark.addEventListener("change", paint);
  paint();

  for (const item of $$(".legend [data-arm]")) {
    const mark = (on) => () => $("#curves .charts").classList.toggle(`only-${item.dataset.arm}`, on);
    item.addEventListener("pointerenter", mark(true));
    item.addEventListener("pointerleave", mark(false));
    item.addEventListener("focus", mark(true));
    item.addEventListener("blur", mark(false));
  }
  for (const button of $$("[data-copy]")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      getSelection().selectAllChildren(button.parentElement.querySelector("pre"));
      button.textContent = document.execCommand("copy") ? "Copied" : "Selected";
    });
  }

  // ---- paper -------------------------------------------------------------------------------
  let folded = [];
  const unfold = () => {
    release();
    folded = $$("details:not([open])");
    for (const details of folded) details.open = true;
  };
  const fold = () => { for (const details of folded) details.open = false; folded = []; };
  addEventListener("beforeprint", unfold);
  addEventListener("afterprint", fold);
})();
