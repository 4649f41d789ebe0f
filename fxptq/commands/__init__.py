"""What each command of the command line does, as functions that return what they print."""
