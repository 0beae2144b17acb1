"""Energy profiles, one TOML file each; ``energy_profile.py`` reads them."""
