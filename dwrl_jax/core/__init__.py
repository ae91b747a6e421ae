"""What every room stands on: errors, types, the mesh, several processes."""
