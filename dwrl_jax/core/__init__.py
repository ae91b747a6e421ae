"""The ground floor that every room stands on: errors, types, files, settings, the mesh, several processes."""
