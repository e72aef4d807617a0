"""Makes the modules in this folder importable from all tests."""
