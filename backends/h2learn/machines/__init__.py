"""Machine descriptions that come with the package."""
