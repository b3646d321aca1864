"""The geometry of solutions: paths and planes between adapters, and how alike two of them are."""
