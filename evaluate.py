"""Evaluate a run: `python evaluate.py run=runs/NAME/DATE_TIME_xxxx split=test`; see README.md."""

from cnnlab.cli import evaluate

# the completion of fish shells looks for the text "@hydra.main" in a script
if __name__ == "__main__":
    evaluate()
