"""`python -m offrl` is the command `offrl`."""

from offrl.cli import entry

if __name__ == "__main__":
    entry()
