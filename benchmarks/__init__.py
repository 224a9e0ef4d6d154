"""How fast and how small: permanent cases, each measured beside its peer in the same run; see README.md."""
