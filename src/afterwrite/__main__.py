"""``python -m afterwrite`` is the afterwrite command."""

from afterwrite.cli import main

if __name__ == "__main__":
    main()
