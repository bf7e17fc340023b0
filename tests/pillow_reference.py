"""What programs mean, in Pillow's own operations, one image at a time: the reference for every back end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torchvision.transforms import functional as F

from trickbag.imageops.program import Op, Step


def execute(images: Tensor, steps: Sequence[Step]) -> Tensor:
    """Uint8 ``(batch, channels, height, width)`` after all steps, of the same shape."""
    return torch.stack(
        [_image(image, [(Op(s.ops[i]), s.args[i]) for s in steps]) for i, image in enumerate(images)]
    )


def pillow(image: Tensor) -> Image.Image:
    """A picture of mode L or RGB from ``(channels, height, width)`` uint8."""
    return F.to_pil_image(image)


def _image(image: Tensor, program: Sequence[tuple[Op, np.ndarray]]) -> Tensor:
    picture = kept = pillow(image)
    mixture = np.zeros(0, np.float32)
    for op, args in program:
        if op is Op.SAVE:
            kept, mixture = picture, np.float32(args[0]) * np.asarray(picture, np.float32)
        elif op is Op.ACCUMULATE:
            mixture = mixture + np.float32(args[0]) * np.asarray(picture, np.float32)
            picture = kept
        elif op is Op.TAKE:
            picture = Image.fromarray(mixture.clip(0, 255).astype(np.uint8))
        else:
            picture = apply(picture, op, args)
    return F.pil_to_tensor(picture)


def apply(picture: Image.Image, op: Op, args: np.ndarray) -> Image.Image:
    """One operation that is no part of a mixture."""
    gray = picture.mode == "L"
    match op:
        case Op.IDENTITY:
            return picture
        case Op.FLIP:
            picture = ImageOps.mirror(picture) if args[0] else picture
            return ImageOps.flip(picture) if args[1] else picture
        case Op.SHIFT:
            return _shift(picture, int(args[0]), int(args[1]), bool(args[2]))
        case Op.AFFINE:
            fill = tuple(int(x) for x in args[7:10])
            return picture.transform(
                picture.size,
                Image.Transform.AFFINE,
                tuple(args[:6].tolist()),
                Image.Resampling(int(args[6])),
                fillcolor=fill[0] if gray else fill,
            )
        case Op.BRIGHTNESS:
            return ImageEnhance.Brightness(picture).enhance(args[0])
        case Op.CONTRAST:
            return ImageEnhance.Contrast(picture).enhance(args[0])
        case Op.SATURATION:
            return ImageEnhance.Color(picture).enhance(args[0])
        case Op.SHARPNESS:
            return ImageEnhance.Sharpness(picture).enhance(args[0])
        case Op.POSTERIZE:
            # Newer versions of Pillow refuse to keep no bits at all.
            bits = int(args[0])
            return ImageOps.posterize(picture, bits) if bits else picture.point(lambda _: 0)
        case Op.SOLARIZE:
            return ImageOps.solarize(picture, args[0])
        case Op.SOLARIZE_ADD:
            table = [min(255, v + int(args[0])) if v < args[1] else v for v in range(256)]
            return picture.point(table * len(picture.getbands()))
        case Op.INVERT:
            return ImageOps.invert(picture)
        case Op.AUTOCONTRAST:
            return ImageOps.autocontrast(picture)
        case Op.EQUALIZE:
            return ImageOps.equalize(picture)
        case Op.HUE:
            return F.adjust_hue(picture, args[0])
        case Op.ADD:
            pixels = np.asarray(picture, np.float64)
            added = pixels + (args[0] if gray else args[:3])
            return Image.fromarray(np.floor(added + 0.5).clip(0, 255).astype(np.uint8))
        case Op.ERASE if args[4] == 0:
            top, left, height, width = (int(x) for x in args[:4])
            color = tuple(int(x) for x in args[5:8])
            if height and width:
                picture = picture.copy()
                picture.paste(color[0] if gray else color, (left, top, left + width, top + height))
            return picture
    raise NotImplementedError(op.name)


def _shift(picture: Image.Image, top: int, left: int, mirrored: bool) -> Image.Image:
    pixels = np.asarray(picture)
    pad = max(abs(top), abs(left))
    sides = [(pad, pad), (pad, pad), (0, 0)][: pixels.ndim]
    padded = np.pad(pixels, sides, mode="reflect" if mirrored else "constant")
    height, width = pixels.shape[:2]
    return Image.fromarray(padded[pad + top : pad + top + height, pad + left : pad + left + width])
