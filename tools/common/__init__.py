"""Code shared by the programs of `tools.demo` and `tools.codec`."""
