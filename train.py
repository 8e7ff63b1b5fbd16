"""Train a recipe: python train.py RECIPE.yaml [MORE.yaml ...] [key=value ...]

Prints what is wrong with a recipe in one message and exits with 2; continues the run where its
newest checkpoint left it; exits with 0 when the run is complete.
"""

import sys

from restomod.cli import train_main

if __name__ == "__main__":
    sys.exit(train_main(sys.argv[1:]))
