"""What runs the workbench many times."""
