"""A second version of a policy beside the active one: run, recorded, compared."""
