"""The command line: each command is one library call, and says what people see while they wait."""
