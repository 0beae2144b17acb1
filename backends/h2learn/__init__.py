"""The accelerator: its instructions, machines, object files and code emission."""
