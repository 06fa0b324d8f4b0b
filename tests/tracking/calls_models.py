"""Calls on datasets, models, artifacts and the registry. See `replay.py`."""


def data(both, first, second, made):
    """Datasets, outputs, and logged models."""
    one = {
        "name": "train",
        "digest": "12ab",
        "source_type": "local",
        "source": '{"uri": "x"}',
        "schema": "{}",
        "profile": '{"rows": 3}',
    }
    two = {"name": "test", "digest": "34cd", "source_type": "http", "source": "y"}
    tag = [{"key": "mlflow.data.context", "value": "training"}]
    both.post("runs/log-inputs", {"run_id": made[3], "datasets": [{"dataset": one, "tags": tag}, {"dataset": two}]})
    both.post("runs/log-inputs", {"run_id": made[3], "datasets": [{"dataset": one, "tags": tag}]})
    both.post(
        "runs/log-inputs",
        {"run_id": made[4], "datasets": [{"dataset": one, "tags": [{"key": "mlflow.data.context", "value": "eval"}]}]},
    )
    both.get("runs/get", {"run_id": made[3]})
    for body in [{"datasets": "x"}, {"datasets": [{"dataset": dict(one, name="x" * 501)}]}, {}]:
        both.post("runs/log-inputs", {"run_id": made[3], **body}, words=False)
    both.post("runs/log-inputs", {"run_id": "0" * 32, "datasets": [{"dataset": one}]})
    for text in [
        "datasets.name = 'train'",
        "dataset.digest = '12ab' AND datasets.context = 'eval'",
        "datasets.name LIKE 'te%'",
        "datasets.context ILIKE 'TRAIN%'",
        "datasets.name != 'test'",
        "datasets.name IN ('test')",
    ]:
        both.post(
            "runs/search", {"experiment_ids": [first], "filter": text, "max_results": 10, "order_by": ["run_name"]}
        )
    both.post(
        "experiments/search-datasets",
        {"experiment_ids": [first]},
        root="/ajax-api/2.0/mlflow/",
        unordered="dataset_summaries",
    )
    both.post("experiments/search-datasets", {"experiment_ids": []}, root="/ajax-api/2.0/mlflow/")
    models = []
    for index in range(3):
        body = {
            "experiment_id": first,
            "name": f"model {index}",
            "model_type": "sklearn",
            "source_run_id": made[index],
            "params": [{"key": "depth", "value": str(index)}],
            "tags": [{"key": "kind", "value": "small"}],
        }
        models.append(both.post("logged-models", body, words=False)["model"]["info"]["model_id"])
    one, two, three = models
    both.get(f"logged-models/{one}")
    both.get("logged-models/m-" + "0" * 32)
    for body in [
        {"name": "x"},
        {"experiment_id": second, "name": ""},
        {"experiment_id": first, "name": "a/b"},
        {"experiment_id": "987654", "name": "x"},
        {"experiment_id": second, "name": "x" * 300},
        {"experiment_id": first, "name": "a:b"},
    ]:
        both.post("logged-models", body, words=False)
    both.call("PATCH", f"logged-models/{one}", {"model_id": one, "status": "LOGGED_MODEL_READY"})
    both.call("PATCH", f"logged-models/{two}", {"model_id": two, "status": "LOGGED_MODEL_UPLOAD_FAILED"})
    none = "m-" + "0" * 32
    both.call("PATCH", f"logged-models/{none}", {"model_id": none, "status": "LOGGED_MODEL_READY"}, words=False)
    both.call(
        "PATCH", f"logged-models/{one}/tags", {"tags": [{"key": "t", "value": "1"}, {"key": "a/b", "value": "2"}]}
    )
    both.call("PATCH", f"logged-models/{one}/tags", {"tags": [{"key": "t", "value": "2"}]})
    both.call("DELETE", f"logged-models/{one}/tags/t")
    both.call("DELETE", f"logged-models/{one}/tags/t", words=False)
    both.post(f"logged-models/{one}/params", {"model_id": one, "params": [{"key": "lr", "value": "0.1"}]})
    both.post(
        f"logged-models/{one}/params",
        {"model_id": one, "params": [{"key": "lr", "value": "0.2"}]},
        words=False,
        differs="a param that has another value is INVALID_PARAMETER_VALUE, as a run's",
    )
    both.post(
        "runs/log-metric",
        {
            "run_id": made[0],
            "key": "score",
            "value": 0.75,
            "timestamp": 50,
            "step": 1,
            "model_id": one,
            "dataset_name": "train",
            "dataset_digest": "12ab",
        },
    )
    both.post(
        "runs/log-batch",
        {"run_id": made[0], "metrics": [{"key": "score", "value": 0.5, "timestamp": 51, "step": 2, "model_id": two}]},
    )
    both.post("runs/outputs", {"run_id": made[0], "models": [{"model_id": one, "step": 3}]})
    both.post("runs/log-inputs", {"run_id": made[1], "models": [{"model_id": one}]})
    both.get(f"logged-models/{one}")
    both.get("runs/get", {"run_id": made[0]})
    both.get("runs/get", {"run_id": made[1]})
    for body in [
        {},
        {"filter": "name = 'model 1'"},
        {"filter": "name LIKE 'model%'"},
        {"filter": "params.depth = '1'"},
        {"filter": "tags.kind = 'small'"},
        {"filter": "metrics.score > 0.6"},
        {"filter": "metrics.score > 0.6", "datasets": [{"dataset_name": "train", "dataset_digest": "12ab"}]},
        {"filter": "metrics.score > 0.6", "datasets": [{"dataset_name": "other", "dataset_digest": "12ab"}]},
        {"filter": "model_type = 'sklearn'"},
        {"filter": "source_run_id = 'none'"},
        {"order_by": [{"field_name": "name", "ascending": False}]},
        {"order_by": [{"field_name": "metrics.score", "ascending": True}]},
        {"max_results": 1},
        {"order_by": [{"field_name": "creation_timestamp"}]},
    ]:
        body = {"experiment_ids": [first], **body}
        body.setdefault("order_by", [{"field_name": "name"}])
        both.post("logged-models/search", body)
    for body in [
        {"filter": "nothing = 1"},
        {"filter": "name > 'x'"},
        {"filter": "name = 'x' OR name = 'y'"},
        {"order_by": [{"field_name": "nothing"}]},
        {"page_token": "?"},
    ]:
        both.post("logged-models/search", {"experiment_ids": [first], **body}, words=False)
    both.call("DELETE", f"logged-models/{three}")
    both.get(f"logged-models/{three}", words=False)
    both.call("DELETE", f"logged-models/{three}", words=False)
    both.call("PATCH", f"logged-models/{three}", {"model_id": three, "status": "LOGGED_MODEL_READY"}, words=False)
    return one


def artifacts(both, first, run):
    proxy = "/api/2.0/mlflow-artifacts/"
    home = f"artifacts/{first}/{run}/artifacts"
    for path, content in [
        ("a.txt", b"alpha"),
        ("deep/er/b.bin", bytes(range(256))),
        ("deep/c ü.txt", b""),
        ("a b.json", b"{}"),
    ]:
        both.call("PUT", f"{home}/{path}", content, root=proxy, headers={"Content-Type": "application/octet-stream"})
    for path in ["a.txt", "deep/er/b.bin", "deep/c ü.txt", "a b.json"]:
        both.get(f"{home}/{path}", root=proxy)
    both.get(f"{home}/none.txt", root=proxy, words=False)
    for query in [{}, {"path": "deep"}, {"path": "deep/er"}, {"path": "none"}, {"path": "a.txt"}]:
        both.get("artifacts/list", {"run_id": run, **query}, words=False)
        where = str(query.get("path", ""))
        both.get("artifacts", {"path": f"{first}/{run}/artifacts/{where}".rstrip("/")}, root=proxy, words=False)
    both.get("artifacts/list", {"run_id": "0" * 32}, words=False)
    both.get("artifacts/list", {}, words=False)
    for path in ["../x", "..%2Fx", "%2e%2e/x", "/etc/passwd", "a/../../x", "%252e%252e/x"]:
        both.get("artifacts/list", [("run_id", run), ("path", path)], words=False)
    for path in ["a.txt", "deep/er/b.bin", "none.txt", "../x"]:
        both.get("/get-artifact", {"run_id": run, "path": path}, root="", words=False)
    both.call("DELETE", f"{home}/a.txt", root=proxy)
    both.get(f"{home}/a.txt", root=proxy, words=False)
    both.get("artifacts/list", {"run_id": run})


def registry(both, run, model):
    both.post(
        "registered-models/create",
        {"name": "digits", "description": "of digits", "tags": [{"key": "team", "value": "vision"}]},
    )
    both.post("registered-models/create", {"name": "other"})
    for body in [{"name": "digits"}, {"name": ""}, {}, {"name": "a/b"}, {"name": "a:b"}]:
        both.post("registered-models/create", body, words=False)
    both.get("registered-models/get", {"name": "digits"})
    both.get("registered-models/get", {"name": "none"})
    both.get("registered-models/get", {}, words=False)
    both.call("PATCH", "registered-models/update", {"name": "digits", "description": "new"})
    both.call("PATCH", "registered-models/update", {"name": "none", "description": "new"})
    for source in ["deep", "deep/er"]:
        both.post(
            "model-versions/create",
            {
                "name": "digits",
                "source": f"runs:/{run}/{source}",
                "run_id": run,
                "description": source,
                "tags": [{"key": "k", "value": "v"}],
            },
        )
    for body in [{"name": "none", "source": f"runs:/{run}/deep", "run_id": run}, {"source": "x"}, {"name": "digits"}]:
        both.post("model-versions/create", body, words=False)
    for body in [{"version": "1"}, {"version": "2"}, {"version": "9"}, {}]:
        both.get("model-versions/get", {"name": "digits", **body}, words=False)
    both.get("model-versions/get", {"name": "none", "version": "1"}, words=False)
    both.call("PATCH", "model-versions/update", {"name": "digits", "version": "1", "description": "better"})
    both.call("PATCH", "model-versions/update", {"name": "digits", "version": "9", "description": "better"})
    both.post("model-versions/set-tag", {"name": "digits", "version": "1", "key": "t", "value": "1"})
    both.post("model-versions/set-tag", {"name": "digits", "version": "9", "key": "t", "value": "1"})
    both.call("DELETE", "model-versions/delete-tag", {"name": "digits", "version": "1", "key": "t"})
    both.call("DELETE", "model-versions/delete-tag", {"name": "digits", "version": "1", "key": "t"})
    both.post("registered-models/set-tag", {"name": "digits", "key": "t", "value": "1"})
    both.post("registered-models/set-tag", {"name": "none", "key": "t", "value": "1"})
    both.call("DELETE", "registered-models/delete-tag", {"name": "digits", "key": "t"})
    both.call("DELETE", "registered-models/delete-tag", {"name": "digits", "key": "t"})
    both.post("registered-models/alias", {"name": "digits", "alias": "champion", "version": "1"})
    both.post("registered-models/alias", {"name": "digits", "alias": "champion", "version": "2"})
    both.post("registered-models/alias", {"name": "digits", "alias": "second", "version": "2"})
    for body in [
        {"alias": "champion", "version": "9"},
        {"alias": "latest", "version": "1"},
        {"alias": "v1", "version": "1"},
        {"alias": "", "version": "1"},
        {"alias": "x"},
        {"version": "1"},
    ]:
        both.post("registered-models/alias", {"name": "digits", **body}, words=False)
    both.get("registered-models/alias", {"name": "digits", "alias": "champion"})
    both.get("registered-models/alias", {"name": "digits", "alias": "none"})
    both.get("registered-models/alias", {"name": "none", "alias": "champion"})
    both.get("registered-models/get", {"name": "digits"})
    for stage in ["Staging", "production", "Archived", "None", "Elsewhere"]:
        both.post(
            "model-versions/transition-stage",
            {"name": "digits", "version": "1", "stage": stage, "archive_existing_versions": False},
            words=False,
        )
    both.post(
        "model-versions/transition-stage",
        {"name": "digits", "version": "2", "stage": "Production", "archive_existing_versions": True},
    )
    both.post(
        "model-versions/transition-stage",
        {"name": "digits", "version": "1", "stage": "Production", "archive_existing_versions": True},
    )
    both.get("model-versions/get", {"name": "digits", "version": "2"})
    for body in [
        {"name": "digits"},
        {"name": "digits", "stages": "Production"},
        {"name": "digits", "stages": "None"},
        {"name": "none"},
    ]:
        both.get("registered-models/get-latest-versions", body, words=False, unordered="model_versions")
        if "stages" in body:
            body = {**body, "stages": [body["stages"]]}
        both.post("registered-models/get-latest-versions", body, words=False, unordered="model_versions")
    both.get("model-versions/get-download-uri", {"name": "none", "version": "1"})
    for query in [
        {},
        {"filter": "name = 'digits'"},
        {"filter": "name LIKE 'd%'"},
        {"filter": "name ILIKE 'D%'"},
        {"filter": "tags.team = 'vision'"},
        {"filter": "name != 'digits'"},
        {"order_by": "name DESC"},
        {"order_by": "last_updated_timestamp DESC"},
        {"max_results": 1},
    ]:
        both.get("registered-models/search", query)
    for query in [
        {"filter": "name"},
        {"filter": "nothing = 'x'"},
        {"filter": "name = 'x' OR name = 'y'"},
        {"order_by": "nothing"},
        {"max_results": 1001},
        {"page_token": "?"},
    ]:
        both.get("registered-models/search", query, words=False)
    for query in [
        {},
        {"filter": "name = 'digits'"},
        {"filter": "name LIKE 'd%'"},
        {"filter": f"run_id = '{run}'"},
        {"filter": "tags.k = 'v'"},
        {"filter": "version_number > 1"},
        {"filter": "version_number = 1"},
        {"filter": "name = 'none'"},
        {"order_by": "version_number DESC"},
        {"order_by": "creation_timestamp ASC"},
        {"max_results": 1},
        {"filter": f"run_id IN ('{run}')"},
    ]:
        both.get("model-versions/search", query)
    for query in [
        {"filter": "name"},
        {"filter": "nothing = 'x'"},
        {"filter": "version_number > 'x'"},
        {"order_by": "nothing"},
        {"max_results": 0},
        {"page_token": "?"},
    ]:
        both.get("model-versions/search", query, words=False)
    both.call("DELETE", "registered-models/alias", {"name": "digits", "alias": "champion"})
    both.call("DELETE", "registered-models/alias", {"name": "digits", "alias": "champion"})
    both.post("registered-models/rename", {"name": "other", "new_name": "another"})
    both.post("registered-models/rename", {"name": "another", "new_name": "digits"}, words=False)
    both.post("registered-models/rename", {"name": "none", "new_name": "x"})
    both.post("registered-models/rename", {"name": "another"}, words=False)
    both.call("DELETE", "model-versions/delete", {"name": "digits", "version": "1"})
    both.call("DELETE", "model-versions/delete", {"name": "digits", "version": "1"})
    both.get("model-versions/get", {"name": "digits", "version": "1"}, words=False)
    both.call("DELETE", "registered-models/delete", {"name": "digits"})
    both.call("DELETE", "registered-models/delete", {"name": "digits"})
    both.get("registered-models/search")


def pages(both, first, run):
    """What the web pages ask for beside these."""
    get_run = """query GetRun($data: MlflowGetRunInput!) { mlflowGetRun(input: $data) { apiError { helpUrl code
      message }
      run { info { runName status runUuid runId experimentId artifactUri endTime lifecycleStage startTime }
        data { metrics { key value step timestamp } params { key value } tags { key value } }
        inputs { datasetInputs { dataset { digest name profile schema source sourceType } tags { key value } }
          modelInputs { modelId } }
        outputs { modelOutputs { modelId step } } modelVersions { name version status source } } } }"""
    experiment = """query MlflowGetExperimentQuery($input: MlflowGetExperimentInput!) {
      mlflowGetExperiment(input: $input) { apiError { code message } experiment { artifactLocation creationTime
        experimentId lastUpdateTime
        lifecycleStage name tags { key value } } } }"""
    found = """query SearchRuns($data: MlflowSearchRunsInput!) { mlflowSearchRuns(input: $data) { apiError {
      code message }
      runs { info { runName runUuid status experimentId } data { metrics { key value } params { key value } } } } }"""
    history = """query GetMetricHistoryBulkInterval($data: MlflowGetMetricHistoryBulkIntervalInput!) {
      mlflowGetMetricHistoryBulkInterval(input: $data) { metrics { timestamp step runId key value } apiError {
        code message } } }"""
    for name, query, variables in [
        ("GetRun", get_run, {"data": {"runId": run}}),
        ("MlflowGetExperimentQuery", experiment, {"input": {"experimentId": first}}),
        ("SearchRuns", found, {"data": {"experimentIds": [first], "orderBy": ["run_name"]}}),
        ("GetMetricHistoryBulkInterval", history, {"data": {"runIds": [run], "metricKey": "loss", "maxResults": 10}}),
    ]:
        both.post("/graphql", {"operationName": name, "query": query, "variables": variables}, root="", words=False)
    for name, query, variables in [
        ("GetRun", get_run, {"data": {"runId": "0" * 32}}),
        ("MlflowGetExperimentQuery", experiment, {"input": {"experimentId": "987654"}}),
        ("SearchRuns", found, {"data": {"experimentIds": [first], "filter": "nonsense"}}),
    ]:
        both.post(
            "/graphql",
            {"operationName": name, "query": query, "variables": variables},
            root="",
            differs="what is refused is in apiError",
        )
    both.get("/health", root="")
    both.get("/version", root="")


def unlike(both, first, run):
    """What docs/mlflow.md says is otherwise here."""
    name = {"experiment_id": first, "new_name": "renamed"}
    for method, path, body, reason in [
        (
            "POST",
            "experiments/create",
            {"name": "elsewhere", "artifact_location": "s3://bucket/x"},
            "artifacts lie in the workspace's store",
        ),
        ("POST", "experiments/update", name, "a name that is taken is RESOURCE_ALREADY_EXISTS"),
        ("POST", "experiments/search", {}, "there is a default"),
        ("POST", "runs/create", {"start_time": 5}, "a run of no experiment is one of the first"),
        (
            "POST",
            "runs/create",
            {"experiment_id": first, "tags": [{"key": "x" * 251, "value": ""}]},
            "keys are as short in all calls",
        ),
        ("POST", "runs/log-metric", {"run_id": run, "key": "m", "value": True, "timestamp": 1}, "true is no number"),
        (
            "POST",
            "runs/log-metric",
            {"run_id": run, "key": "m", "value": 1, "timestamp": 1 << 70},
            "no integer of 64 bits",
        ),
        ("GET", "metrics/get-history", {"run_id": "0" * 32, "metric_key": "loss"}, "there is no such run"),
        ("GET", "metrics/get-history", {"run_id": run, "metric_key": "loss", "max_results": "x"}, "no number"),
        ("POST", "runs/update", {"run_id": run, "status": "DONE"}, "no status"),
        ("POST", "runs/search", {"experiment_ids": [first], "run_view_type": "SOME"}, "no view"),
        ("POST", "runs/search", {"experiment_ids": [first], "filter": "tags.a = 'b' AND"}, "a comparison is missing"),
        (
            "POST",
            "runs/search",
            {"experiment_ids": [first], "filter": "metrics.'loss' > 0.1"},
            'keys are quoted by ` and "',
        ),
        ("POST", "runs/log-inputs", {"run_id": run, "datasets": [{"tags": []}]}, "a dataset is missing"),
        ("POST", "runs/log-inputs", {"run_id": run, "datasets": [{"dataset": {"name": "x"}}]}, "its digest is missing"),
        ("GET", "registered-models/search", {"max_results": 0}, "a page of nothing"),
        ("GET", "none", {}, "what is not served has MLflow's error_code"),
    ]:
        both.call(method, path, body, words=False, differs=reason)
