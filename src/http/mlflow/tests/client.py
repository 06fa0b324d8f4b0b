"""What people do with MLflow, with its client as it comes from PyPI.

Usage: client.py outside | inside | sealed FILE | registry | large
"""

import json
import math
import os
import sys
import time
from pathlib import Path

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException

URL = os.environ["MLFLOW_TRACKING_URI"]
HEADERS = {"Authorization": "Bearer " + os.environ["MLFLOW_TRACKING_TOKEN"]}


def refused(call, code, part):
    try:
        call()
    except MlflowException as error:
        assert error.error_code == code, (error.error_code, error.message)
        assert part in error.message, error.message
    else:
        raise AssertionError("not refused: " + part)


def outside():
    client = MlflowClient()

    # Experiments.
    experiment = mlflow.set_experiment("digits with spaces / and ü")
    assert mlflow.set_experiment("digits with spaces / and ü").experiment_id == experiment.experiment_id
    assert experiment.lifecycle_stage == "active"
    mlflow.set_experiment_tag("team", "vision")
    assert client.get_experiment(experiment.experiment_id).tags == {"team": "vision"}
    other = client.create_experiment("other", tags={"a": "b"})
    client.rename_experiment(other, "renamed")
    assert client.get_experiment_by_name("renamed").experiment_id == other
    assert client.get_experiment_by_name("none such") is None
    refused(lambda: client.create_experiment("renamed"), "RESOURCE_ALREADY_EXISTS", "already exists")
    names = [e.name for e in client.search_experiments(filter_string="tags.a = 'b'")]
    assert names == ["renamed"], names
    assert len(mlflow.search_experiments(order_by=["name ASC"])) == 4
    client.delete_experiment(other)
    assert client.get_experiment(other).lifecycle_stage == "deleted"
    deleted = client.search_experiments(view_type=ViewType.DELETED_ONLY)
    assert [e.name for e in deleted] == ["renamed"]
    client.restore_experiment(other)

    # A run, step by step.
    with mlflow.start_run(run_name="first", tags={"kind": "test"}, description="note") as run:
        run_id = run.info.run_id
        mlflow.log_param("lr", 0.1)
        mlflow.log_param("lr", 0.1)
        mlflow.log_params({"depth": 3, "empty": "", "long": "x" * 7000})
        for step in range(60):
            mlflow.log_metric("loss", 1.0 / (step + 1), step=step)
        mlflow.log_metrics({"acc": 0.5, "f1": 0.25}, step=3)
        mlflow.log_metric("nan", float("nan"))
        mlflow.log_metric("inf", float("inf"))
        mlflow.log_metric("ninf", float("-inf"))
        mlflow.set_tag("note", "hello")
        mlflow.set_tags({"a": 1, "b": "two"})
        mlflow.log_text("text ü", "notes/text.txt")
        mlflow.log_dict({"k": [1, 2]}, "config/dict.json")
        Path("plain.txt").write_text("plain")
        mlflow.log_artifact("plain.txt")
        mlflow.log_artifact("plain.txt", "copies/deep")
        Path("tree/sub").mkdir(parents=True)
        Path("tree/one.bin").write_bytes(bytes(range(256)) * 100)
        Path("tree/sub/two words.txt").write_text("two")
        mlflow.log_artifacts("tree", "tree")
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots()
        axes.plot([1, 2, 3])
        mlflow.log_figure(figure, "plots/figure.png")
        mlflow.log_table({"x": [1, 2], "y": ["a", "b"]}, "table.json")
        refused(lambda: mlflow.log_param("lr", 0.2), "INVALID_PARAMETER_VALUE", "Changing param values")
        refused(lambda: mlflow.log_params({"depth": 4}), "INVALID_PARAMETER_VALUE", "Changing param values")
        refused(lambda: mlflow.log_metric("a//b", 1), "INVALID_PARAMETER_VALUE", "resolve to other names")
        refused(lambda: mlflow.log_metric("k" * 251, 1), "INVALID_PARAMETER_VALUE", "maximum length of 250")
        refused(lambda: mlflow.set_tag("k" * 251, 1), "INVALID_PARAMETER_VALUE", "maximum length of 250")
    info = client.get_run(run_id).info
    assert info.status == "FINISHED" and info.end_time >= info.start_time, info
    assert info.artifact_uri == f"mlflow-artifacts:/{experiment.experiment_id}/{run_id}/artifacts"
    data = client.get_run(run_id).data
    assert data.params["lr"] == "0.1" and data.params["empty"] == "" and len(data.params["long"]) == 6000
    assert data.metrics["acc"] == 0.5 and data.metrics["loss"] == 1.0 / 60
    assert math.isnan(data.metrics["nan"]) and data.metrics["inf"] == sys.float_info.max
    assert data.metrics["ninf"] == -sys.float_info.max
    assert data.tags["a"] == "1" and data.tags["mlflow.runName"] == "first" and data.tags["kind"] == "test"
    assert data.tags["mlflow.note.content"] == "note"

    # Resuming, nesting, ending badly.
    with mlflow.start_run(run_id=run_id):
        assert client.get_run(run_id).info.status == "RUNNING"
        with mlflow.start_run(nested=True, run_name="child") as child:
            mlflow.log_metric("acc", 0.9)
    assert client.get_run(child.info.run_id).data.tags["mlflow.parentRunId"] == run_id
    try:
        with mlflow.start_run(run_name="bad") as bad:
            raise ValueError("as intended")
    except ValueError:
        pass
    assert client.get_run(bad.info.run_id).info.status == "FAILED"
    client.update_run(bad.info.run_id, status="KILLED", name="worse")
    assert client.get_run(bad.info.run_id).info.run_name == "worse"
    client.set_tag(bad.info.run_id, "mlflow.runName", "worst")
    assert client.get_run(bad.info.run_id).info.run_name == "worst"
    client.delete_tag(run_id, "note")
    assert "note" not in client.get_run(run_id).data.tags
    refused(lambda: client.delete_tag(run_id, "note"), "RESOURCE_DOES_NOT_EXIST", "No tag with name")
    refused(lambda: client.get_run("0" * 32), "RESOURCE_DOES_NOT_EXIST", "not found")
    client.delete_run(bad.info.run_id)
    refused(lambda: client.log_param(bad.info.run_id, "a", 1), "INVALID_PARAMETER_VALUE", "'active' state")
    client.restore_run(bad.info.run_id)

    # Batches, also without waiting.
    now = int(time.time() * 1000)
    metrics = [Metric("batch", i, now + i, i) for i in range(1500)]
    client.log_batch(run_id, metrics, [Param("p", "q")], [RunTag("r", "s")])
    client.log_batch(run_id, metrics[:10])
    assert len(client.get_metric_history(run_id, "batch")) == 1500
    with mlflow.start_run(run_id=run_id):
        pending = [mlflow.log_metric("later", i, step=i, synchronous=False) for i in range(50)]
        for each in pending:
            each.wait()
        mlflow.flush_async_logging()
    assert [m.step for m in client.get_metric_history(run_id, "later")] == list(range(50))
    history = client.get_metric_history(run_id, "loss")
    assert [m.step for m in history] == list(range(60)) and history[9].value == 0.1

    # Datasets.
    import pandas

    frame = pandas.DataFrame({"x": [1.0, 2.0], "y": [0, 1]})
    dataset = mlflow.data.from_pandas(frame, name="digits", targets="y")
    with mlflow.start_run(run_id=run_id):
        mlflow.log_input(dataset, context="training")
        mlflow.log_input(dataset, context="training")
    inputs = client.get_run(run_id).inputs.dataset_inputs
    assert len(inputs) == 1 and inputs[0].dataset.name == "digits", inputs
    assert inputs[0].tags[0].value == "training"

    # Searching.
    ids = [experiment.experiment_id]

    def found(text="", order=None, **more):
        return [r.info.run_name for r in client.search_runs(ids, text, order_by=order, **more)]

    assert found(order=["attributes.start_time ASC"]) == ["first", "child", "worst"]
    assert found("metrics.acc > 0.6") == ["child"]
    assert found("metrics.acc >= 0.5", ["metrics.acc DESC"]) == ["child", "first"]
    assert found("params.lr = '0.1' AND tags.kind = 'test'") == ["first"]
    assert found("tags.mlflow.parentRunId = '%s'" % run_id) == ["child"]
    assert found("attributes.status = 'FINISHED' and attributes.run_name LIKE 'fi%'") == ["first"]
    assert found("run_id IN ('%s', 'x')" % run_id) == ["first"]
    assert found("dataset.name = 'digits' AND dataset.context = 'training'") == ["first"]
    assert found("params.lr IS NULL AND attributes.`run name` ILIKE 'W%'") == ["worst"]
    refused(lambda: found("metrics.acc > 1 OR metrics.acc < 0"), "INVALID_PARAMETER_VALUE", "expected AND")
    refused(lambda: found("metric.acc > 'x'"), "INVALID_PARAMETER_VALUE", "numeric")
    page = client.search_runs(ids, max_results=2, order_by=["attributes.start_time ASC"])
    assert len(page) == 2 and page.token
    rest = client.search_runs(ids, max_results=2, order_by=["attributes.start_time ASC"], page_token=page.token)
    assert [r.info.run_name for r in rest] == ["worst"] and not rest.token
    table = mlflow.search_runs(ids, "metrics.acc > 0", order_by=["metrics.acc"])
    assert list(table["metrics.acc"]) == [0.5, 0.9] and table["params.lr"][0] == "0.1", table

    # Artifacts back again.
    listed = sorted((f.path, f.is_dir, f.file_size) for f in client.list_artifacts(run_id))
    assert [path for path, _, _ in listed] == [
        "config", "copies", "notes", "plain.txt", "plots", "table.json", "tree"], listed
    assert ("plain.txt", False, 5) in listed
    assert [f.path for f in client.list_artifacts(run_id, "tree/sub")] == ["tree/sub/two words.txt"]
    assert client.list_artifacts(run_id, "plain.txt") == []
    whole = Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="", dst_path="all"))
    assert (whole / "tree/one.bin").read_bytes() == bytes(range(256)) * 100
    assert (whole / "tree/sub/two words.txt").read_text() == "two"
    assert (whole / "plots/figure.png").read_bytes()[:4] == b"\x89PNG"
    one = mlflow.artifacts.download_artifacts(artifact_uri=f"runs:/{run_id}/notes/text.txt")
    assert Path(one).read_text(encoding="utf-8") == "text ü"
    assert mlflow.artifacts.load_dict(f"runs:/{run_id}/config/dict.json") == {"k": [1, 2]}
    assert mlflow.artifacts.load_text(f"{info.artifact_uri}/notes/text.txt") == "text ü"
    tables = mlflow.load_table("table.json", run_ids=[run_id])
    assert list(tables["x"]) == [1, 2]

    models(ids[0])
    workspaces()

    # What the client itself would not send.
    def post(path, **body):
        data = body.pop("raw", None) or json.dumps(body)
        return requests.post(f"{URL}/api/2.0/mlflow/{path}", data=data, headers=HEADERS, timeout=30)

    batch = [{"key": f"m{i}", "value": 1, "timestamp": 1, "step": 0} for i in range(1001)]
    answer = post("runs/log-batch", run_id=run_id, metrics=batch)
    assert answer.status_code == 400 and "at most 1000 metrics" in answer.json()["message"]
    raw = '{"run_id": "%s", "key": "m", "value": 1e400, "timestamp": 1}' % run_id
    answer = post("runs/log-metric", raw=raw)
    assert answer.status_code == 400 and answer.json()["error_code"] == "INVALID_PARAMETER_VALUE"
    assert "m" not in client.get_run(run_id).data.metrics
    for path in ("..%2F..%2Fx", "%252e%252e%252fx"):
        address = f"{URL}/api/2.0/mlflow-artifacts/artifacts/{ids[0]}/{run_id}/artifacts/{path}"
        answer = requests.put(address, data=b"x", headers=HEADERS, timeout=30)
        assert answer.status_code == 400 and "Invalid path" in answer.json()["message"], answer.text


class Doubled(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input):
        return [2 * x for x in model_input]


def workspaces():
    assert [w.name for w in mlflow.list_workspaces()] == ["team"]
    mlflow.set_workspace("team")
    assert MlflowClient().get_experiment("0").name == "Default"
    mlflow.set_workspace("other")
    refused(lambda: MlflowClient().get_experiment("0"), "RESOURCE_DOES_NOT_EXIST", "'other' not found")
    mlflow.set_workspace(None)


def models(experiment):
    client = MlflowClient()
    with mlflow.start_run(experiment_id=experiment) as run:
        mlflow.log_param("depth", 3)
        info = mlflow.pyfunc.log_model(
            name="doubled", python_model=Doubled(), pip_requirements=["mlflow"], params={"k": "v"}
        )
        mlflow.log_metric("rmse", 0.5, model_id=info.model_id)
        mlflow.log_metrics({"mae": 0.25}, model_id=info.model_id)
    model = mlflow.get_logged_model(info.model_id)
    assert model.status == "READY" and model.name == "doubled", model
    assert model.source_run_id == run.info.run_id and model.experiment_id == experiment
    assert model.params["k"] == "v" and model.params["depth"] == "3", model.params
    assert {m.key: m.value for m in model.metrics} == {"rmse": 0.5, "mae": 0.25}
    assert {m.run_id for m in model.metrics} == {run.info.run_id}
    found = client.get_run(run.info.run_id)
    assert [o.model_id for o in found.outputs.model_outputs] == [model.model_id]
    assert found.data.metrics == {"rmse": 0.5, "mae": 0.25}

    for uri in (f"models:/{model.model_id}", f"runs:/{run.info.run_id}/doubled", info.model_uri):
        assert mlflow.pyfunc.load_model(uri).predict([1, 2]) == [2, 4], uri
    names = [f.path for f in client.list_artifacts(run.info.run_id, "doubled")]
    assert "doubled/MLmodel" in names, names
    listed = mlflow.artifacts.list_artifacts(f"models:/{model.model_id}")
    assert "MLmodel" in [f.path for f in listed], listed
    mlflow.models.set_signature(
        f"models:/{model.model_id}", mlflow.models.infer_signature([1.0], [2.0])
    )
    assert mlflow.models.get_model_info(f"models:/{model.model_id}").signature is not None

    mlflow.set_logged_model_tags(model.model_id, {"stage": "good", "other": "x"})
    mlflow.delete_logged_model_tag(model.model_id, "other")
    tags = mlflow.get_logged_model(model.model_id).tags
    assert tags["stage"] == "good" and "other" not in tags, tags
    second = mlflow.create_external_model(name="far", model_type="agent", params={f"p{i}": "1" for i in range(250)})
    assert second.status == "READY" and len(second.params) == 250, second

    def search(filter_string, **more):
        return [
            m.name
            for m in mlflow.search_logged_models(
                experiment_ids=[experiment], filter_string=filter_string, output_format="list", **more
            )
        ]

    assert search("metrics.rmse < 1 AND params.k = 'v' AND tags.stage LIKE 'go%'") == ["doubled"]
    assert search("model_type = 'agent'") == ["far"]
    assert search(f"source_run_id = '{run.info.run_id}' and status = 'READY'") == ["doubled"]
    by_metric = [{"field_name": "metrics.rmse", "ascending": False}]
    assert search(None, order_by=by_metric) == ["doubled", "far"]
    assert search(None, order_by=[{"field_name": "name", "ascending": False}]) == ["far", "doubled"]
    assert search(None, datasets=[{"dataset_name": "none such"}]) == []
    page = client.search_logged_models([experiment], max_results=1)
    rest = client.search_logged_models([experiment], max_results=1, page_token=page.token)
    assert [m.name for m in [*page, *rest]] == ["far", "doubled"] and not rest.token
    with mlflow.start_run(experiment_id=experiment) as reader:
        client.log_inputs(reader.info.run_id, models=[mlflow.entities.LoggedModelInput(model.model_id)])
    inputs = client.get_run(reader.info.run_id).inputs
    assert [m.model_id for m in inputs.model_inputs] == [model.model_id]
    client.delete_logged_model(second.model_id)
    refused(lambda: client.get_logged_model(second.model_id), "RESOURCE_DOES_NOT_EXIST", "not found")
    assert search(None) == ["doubled"]
    client._tracking_client.store.record_logged_model(
        run.info.run_id, mlflow.models.Model(artifact_path="m", run_id=run.info.run_id)
    )
    history = json.loads(client.get_run(run.info.run_id).data.tags["mlflow.log-model.history"])
    assert [entry["artifact_path"] for entry in history] == ["m"], history


def large():
    asked = []
    real = requests.Session.request

    def request(self, method, url, **more):
        asked.append((method.upper(), url))
        return real(self, method, url, **more)

    requests.Session.request = request
    body = bytes(range(256)) * 100_000  # three parts
    Path("weights.bin").write_bytes(body)
    Path("small.txt").write_text("small")
    with mlflow.start_run() as run:
        mlflow.log_artifact("weights.bin", "deep")
        mlflow.log_artifact("small.txt", "deep")
    parts = [url for method, url in asked if method == "PUT" and "partNumber=" in url]
    assert len(parts) == 3 and not any(url.startswith(URL) for url in parts), parts
    sent = [url for method, url in asked if method == "PUT" and url.startswith(URL)]
    assert len(sent) == 1 and sent[0].endswith("small.txt"), sent
    asked.clear()
    got = Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="deep"))
    assert (got / "weights.bin").read_bytes() == body and (got / "small.txt").read_text() == "small"
    past = [url for method, url in asked if method == "GET" and not url.startswith(URL)]
    assert len(past) >= 6, asked


def inside():
    # As a training script that knows nothing of where it runs.
    with mlflow.start_run() as run:
        assert run.info.run_id == "job_a", run.info
        mlflow.log_params({"lr": 0.1})
        for step in range(40):
            mlflow.log_metric("loss", 1.0 / (step + 1), step=step)
        mlflow.log_metric("nan", float("nan"))
        mlflow.log_text("hello", "hello.txt")
        info = mlflow.pyfunc.log_model(
            name="own", python_model=Doubled(), pip_requirements=["mlflow"]
        )
        mlflow.log_metric("quality", 1, model_id=info.model_id)
        assert mlflow.pyfunc.load_model("runs:/job_a/own").predict([4]) == [8]
        with mlflow.start_run(nested=True, run_name="trial"):
            mlflow.log_metric("loss", 0.5)
    client = MlflowClient()
    assert client.get_run("job_a").info.status == "RUNNING", "the job is not over"
    # A second run in the same script is one of its own: the client uses MLFLOW_RUN_ID up.
    with mlflow.start_run() as second:
        mlflow.log_metric("late", 1)
    assert second.info.run_id != "job_a" and second.info.experiment_id == "1"
    trials = client.search_runs(["1"], "tags.mlflow.parentRunId = 'job_a'")
    assert [t.info.status for t in trials] == ["FINISHED"]
    refused(lambda: client.create_experiment("elsewhere"), "PERMISSION_DENIED", "set_experiment")


def sealed(file):
    import pandas
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(file)
    assert [(f.name, str(f.type)) for f in table.schema] == [
        ("key", "string"),
        ("step", "int64"),
        ("timestamp", "timestamp[ms, tz=UTC]"),
        ("value", "double"),
    ], table.schema
    assert not any(f.nullable for f in table.schema)
    facts = pyarrow.parquet.read_metadata(file)
    assert facts.metadata[b"atelier.run"] == b"job_a" and facts.row_group(0).column(3).compression == "ZSTD"
    frame = pandas.read_parquet(file)
    assert list(frame["key"].unique()) == ["loss", "nan", "quality"], frame
    loss = frame[frame["key"] == "loss"]
    assert list(loss["step"]) == list(range(40)) and loss["value"].iloc[9] == 0.1
    assert frame[frame["key"] == "nan"]["value"].isna().all()

    # The client sees no difference.
    client = MlflowClient()
    history = client.get_metric_history("job_a", "loss")
    assert [(m.step, m.value) for m in history] == list(zip(loss["step"], loss["value"]))
    assert client.get_run("job_a").info.status == "FINISHED"
    assert client.get_run("job_a").data.metrics["loss"] == 1.0 / 40
    found = client.search_runs(["1"], "metrics.loss < 0.1 AND attributes.status = 'FINISHED'")
    assert [r.info.run_id for r in found] == ["job_a"]
    text = mlflow.artifacts.load_text("runs:/job_a/hello.txt")
    assert text == "hello"


MODEL = """
import mlflow


class Doubler(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return [2 * each for each in model_input]


mlflow.models.set_model(Doubler())
"""


def registry():
    client = MlflowClient()
    mlflow.set_experiment("registry")
    Path("doubler.py").write_text(MODEL)
    mlflow.pyfunc.save_model("saved", python_model="doubler.py", pip_requirements=[])
    with mlflow.start_run() as run:
        mlflow.log_artifacts("saved", "model")
    run_id = run.info.run_id
    source = f"runs:/{run_id}/model"

    # Registered, and loaded by every name.
    first = mlflow.register_model(source, "doubler", tags={"team": "vision"})
    assert (first.name, str(first.version), first.status) == ("doubler", "1", "READY"), first
    assert first.run_id == run_id and first.source == f"{run.info.artifact_uri}/model", first
    assert str(mlflow.register_model(source, "doubler").version) == "2"
    client.set_registered_model_alias("doubler", "champion", "1")
    client.transition_model_version_stage("doubler", "2", "Staging")
    for name in ("doubler/1", "doubler/2", "doubler@champion", "doubler/Staging", "doubler/latest"):
        loaded = mlflow.pyfunc.load_model(f"models:/{name}")
        assert loaded.predict([1, 2]) == [2, 4], name
    folder = Path(mlflow.artifacts.download_artifacts("models:/doubler@champion"))
    assert (folder / "MLmodel").read_text() == Path("saved/MLmodel").read_text()
    assert client.get_model_version_by_alias("doubler", "champion").tags == {"team": "vision"}
    assert [str(v.version) for v in client.get_latest_versions("doubler", ["Staging"])] == ["2"]

    # A logged model, by its id and with its run.
    with mlflow.start_run() as other:
        logged = mlflow.pyfunc.log_model(
            name="logged", python_model="doubler.py", pip_requirements=[], registered_model_name="logged")
    version = client.get_model_version("logged", "1")
    assert version.run_id == other.info.run_id, version
    assert version.source == f"models:/{logged.model_id}", version
    assert mlflow.pyfunc.load_model("models:/logged/1").predict([4]) == [8]
    assert str(mlflow.register_model(f"models:/{logged.model_id}", "logged").version) == "2"
    address = f"{URL}/api/2.0/mlflow-artifacts/artifacts/{other.info.experiment_id}/models/{logged.model_id}/artifacts/MLmodel"
    answer = requests.put(address, data=b"x", headers=HEADERS, timeout=30)
    assert answer.status_code == 403 and "never changes" in answer.json()["message"], answer.text

    # What is said of them.
    client.update_registered_model("doubler", "it doubles")
    client.update_model_version("doubler", "1", "the first")
    client.set_registered_model_tag("doubler", "kind", "demo")
    client.set_model_version_tag("doubler", "2", "checked", "yes")
    model = client.get_registered_model("doubler")
    assert (model.description, model.tags) == ("it doubles", {"kind": "demo"}), model
    assert model.aliases == {"champion": "1"}, model.aliases
    assert client.get_model_version("doubler", "1").description == "the first"
    client.delete_registered_model_tag("doubler", "kind")
    client.delete_model_version_tag("doubler", "2", "checked")
    client.delete_registered_model_alias("doubler", "champion")
    assert client.get_registered_model("doubler").aliases == {}
    assert client.get_model_version("doubler", "2").tags == {}

    # Searched.
    for name in ("other-1", "other-2", "other-3"):
        client.create_registered_model(name, tags={"kind": "empty"})
    found = client.search_registered_models("name LIKE 'other%' AND tags.kind = 'empty'", max_results=2)
    assert [m.name for m in found] == ["other-1", "other-2"] and found.token
    found = client.search_registered_models(
        "name LIKE 'other%' AND tags.kind = 'empty'", max_results=2, page_token=found.token)
    assert [m.name for m in found] == ["other-3"] and not found.token
    found = client.search_model_versions(f"run_id = '{run_id}'", order_by=["version_number ASC"])
    assert [(v.name, str(v.version)) for v in found] == [("doubler", "1"), ("doubler", "2")], found
    found = client.search_model_versions("name = 'doubler' AND tags.team = 'vision'")
    assert [str(v.version) for v in found] == ["1"], found

    # Copied, renamed, deleted.
    copied = client.copy_model_version("models:/doubler/1", "copy")
    assert (copied.name, str(copied.version), copied.source) == ("copy", "1", "models:/doubler/1"), copied
    assert mlflow.pyfunc.load_model("models:/copy/1").predict([3]) == [6]
    client.rename_registered_model("copy", "renamed")
    assert mlflow.pyfunc.load_model("models:/renamed/1").predict([3]) == [6]
    client.delete_model_version("renamed", "1")
    refused(lambda: client.get_model_version("renamed", "1"), "RESOURCE_DOES_NOT_EXIST", "not found")
    client.delete_registered_model("renamed")
    refused(lambda: client.get_registered_model("renamed"), "RESOURCE_DOES_NOT_EXIST", "not found")

    # Refused.
    refused(lambda: client.create_registered_model("doubler"), "RESOURCE_ALREADY_EXISTS", "already exists")
    refused(lambda: client.create_model_version("doubler", "/etc", run_id), "INVALID_PARAMETER_VALUE", "machine")
    refused(
        lambda: client.create_model_version("doubler", f"{run.info.artifact_uri}/../../x", run_id),
        "INVALID_PARAMETER_VALUE", "Invalid model version source")
    refused(
        lambda: client.transition_model_version_stage("doubler", "1", "elsewhere"),
        "INVALID_PARAMETER_VALUE", "Invalid Model Version stage")
    refused(
        lambda: client.set_registered_model_alias("doubler", "latest", "1"),
        "INVALID_PARAMETER_VALUE", "reserved")
    address = f"{URL}/api/2.0/mlflow-artifacts/artifacts/{run.info.experiment_id}/{run_id}/artifacts/model/MLmodel"
    answer = requests.put(address, data=b"x", headers=HEADERS, timeout=30)
    assert answer.status_code == 403 and "never changes" in answer.json()["message"], answer.text


parts = {"outside": outside, "inside": inside, "sealed": sealed, "registry": registry, "large": large}
parts[sys.argv[1]](*sys.argv[2:])
print("all checks passed")
