"""HTTP: routes, schemas, limits, pages."""
