"""Pure tensor functions and small modules behind the tricks; torch is all that they import."""
