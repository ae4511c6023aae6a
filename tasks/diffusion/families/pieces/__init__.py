"""Models of Stable Diffusion that come in pieces, put together as folders that are audited like any other."""
