"""Start a run: `python train.py data=mnist model=cnn trainer.epochs=2`; see README.md."""

from cnnlab.cli import train

# the completion of fish shells looks for the text "@hydra.main" in a script
if __name__ == "__main__":
    train()
