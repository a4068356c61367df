"""A package of its own: rt-utils, which pydosert needs, installs its tests under this name too."""
