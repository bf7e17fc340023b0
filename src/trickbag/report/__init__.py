"""What a person reads of a study: verdict, effects with intervals, ladder, costs, provenance."""
