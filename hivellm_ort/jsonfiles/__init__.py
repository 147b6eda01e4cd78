"""JSON files of packages: strict reading, typed fields, and where a fault stands."""
