"""`python -m chatpipe`, which the launcher starts in each process."""

from chatpipe.cli.app import main

main()
