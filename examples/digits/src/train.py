"""Trains a small neural network on 8x8 images of handwritten digits.

Plain scikit-learn and MLflow: nothing here knows what runs it. Parameters, one loss and one
accuracy per epoch, a confusion matrix and the fitted model are what it leaves behind.
"""

import argparse
import json
from pathlib import Path

import joblib
import matplotlib

matplotlib.use("Agg")  # no display on a node

import matplotlib.pyplot as plt
import mlflow
import numpy as np
from sklearn.metrics import ConfusionMatrixDisplay, accuracy_score, log_loss
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="digits.csv: 64 pixels, then the digit")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--hidden-units", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=0.005)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, required=True, help="folder for the fitted model")
    return parser.parse_args()


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    table = np.loadtxt(path, delimiter=",", skiprows=1, dtype=np.int64)
    return table[:, :-1].astype(np.float64), table[:, -1]


def save_plots(outputs: Path, losses: list[float], accuracies: list[float], truth, predicted) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5))
    epochs = range(1, len(losses) + 1)
    left.plot(epochs, losses, color="tab:red", label="training loss")
    left.set_xlabel("epoch")
    left.set_ylabel("loss")
    accuracy_axis = left.twinx()
    accuracy_axis.plot(epochs, accuracies, color="tab:blue", label="test accuracy")
    accuracy_axis.set_ylabel("accuracy")
    left.figure.legend(loc="upper left", ncols=2, frameon=False)
    ConfusionMatrixDisplay.from_predictions(truth, predicted, ax=right, colorbar=False)
    figure.tight_layout(rect=(0, 0, 1, 0.94))
    figure.savefig(outputs / "training.png", dpi=120)
    mlflow.log_figure(figure, "training.png")
    plt.close(figure)


def main() -> None:
    arguments = parse_arguments()
    pixels, digits = read(arguments.data)
    x_train, x_test, y_train, y_test = train_test_split(
        pixels, digits, test_size=0.25, stratify=digits, random_state=arguments.seed
    )
    print(f"{len(x_train)} images to learn from, {len(x_test)} to test on", flush=True)

    scaler = StandardScaler().fit(x_train)
    network = MLPClassifier(
        hidden_layer_sizes=(arguments.hidden_units,),
        learning_rate_init=arguments.learning_rate,
        random_state=arguments.seed,
    )
    classes = np.unique(digits)
    losses, accuracies = [], []

    with mlflow.start_run():
        mlflow.log_params(
            {
                "epochs": arguments.epochs,
                "hidden_units": arguments.hidden_units,
                "learning_rate": arguments.learning_rate,
                "seed": arguments.seed,
                "train_images": len(x_train),
                "test_images": len(x_test),
            }
        )
        for epoch in range(1, arguments.epochs + 1):
            network.partial_fit(scaler.transform(x_train), y_train, classes=classes)
            probabilities = network.predict_proba(scaler.transform(x_test))
            accuracy = accuracy_score(y_test, classes[probabilities.argmax(axis=1)])
            test_loss = log_loss(y_test, probabilities, labels=classes)
            losses.append(float(network.loss_))
            accuracies.append(float(accuracy))
            mlflow.log_metrics(
                {"train_loss": network.loss_, "test_loss": test_loss, "test_accuracy": accuracy},
                step=epoch,
            )
            print(
                f"epoch {epoch:3d}  train loss {network.loss_:.4f}"
                f"  test loss {test_loss:.4f}  test accuracy {accuracy:.4f}",
                flush=True,
            )

        outputs = Path("outputs")
        outputs.mkdir(exist_ok=True)
        predicted = network.predict(scaler.transform(x_test))
        save_plots(outputs, losses, accuracies, y_test, predicted)
        (outputs / "metrics.json").write_text(
            json.dumps({"test_accuracy": accuracies[-1], "train_loss": losses[-1]}, indent=2) + "\n"
        )

        arguments.model.mkdir(parents=True, exist_ok=True)
        joblib.dump(make_pipeline(scaler, network), arguments.model / "model.joblib")
        mlflow.set_tag("model_file", "model.joblib")
    print(f"model written to {arguments.model / 'model.joblib'}", flush=True)


if __name__ == "__main__":
    main()
