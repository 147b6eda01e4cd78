"""The files that an export writes: base bundles, `.expert` packages, and the output folder."""
