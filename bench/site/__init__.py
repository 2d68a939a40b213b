"""A Django project with thirty routes and nothing else, into which ours or one of the peers is put."""
