"""`python -m mmtrain`, the form that torchrun starts."""

import sys

from mmtrain.cli import main

# Workers of a DataLoader may import this module again under another name.
if __name__ == "__main__":
    sys.exit(main())
