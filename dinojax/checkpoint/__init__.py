"""States on disk: written and read by Orbax across processes, located, inspected, summed."""
