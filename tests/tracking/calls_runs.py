"""Calls on experiments, runs and their histories. See `replay.py`."""


def experiments(both):
    both.get("experiments/get", {"experiment_id": "0"})
    both.get("experiments/get-by-name", {"experiment_name": "Default"})
    ids = {}
    for name in ["first", "second", "ü / with spaces", "Third"]:
        tags = [{"key": "team", "value": name[0]}, {"key": "a.b c", "value": "1"}]
        ids[name] = both.post("experiments/create", {"name": name, "tags": tags})["experiment_id"]
        both.get("experiments/get", {"experiment_id": ids[name]})
    both.get("experiments/get-by-name", {"experiment_name": "ü / with spaces"})
    for body in [{"name": ""}, {}, {"name": "x" * 501}]:
        both.post("experiments/create", body)
    for body in [{"name": "first"}, {"name": 7}, {"name": "tagged", "tags": [{"key": "", "value": "x"}]}]:
        both.post("experiments/create", body, words=False)
    for path, query in [
        ("get", {"experiment_id": "987654"}),
        ("get", {"experiment_id": "abc"}),
        ("get", {}),
        ("get-by-name", {"experiment_name": "none"}),
        ("get-by-name", {}),
    ]:
        both.get(f"experiments/{path}", query, words=query != {"experiment_id": "abc"})
    for body in [
        {"experiment_id": ids["first"], "key": "k", "value": "v"},
        {"experiment_id": ids["first"], "key": "k", "value": "w"},
        {"experiment_id": ids["first"], "key": "x" * 251, "value": "v"},
        {"experiment_id": ids["first"], "key": "bad(key", "value": "v"},
        {"experiment_id": ids["first"], "key": "k"},
        {"experiment_id": "987654", "key": "k", "value": "v"},
        {"key": "k", "value": "v"},
    ]:
        both.post("experiments/set-experiment-tag", body, words="bad" not in str(body))
    both.post("experiments/delete-experiment-tag", {"experiment_id": ids["first"], "key": "team"})
    both.post("experiments/delete-experiment-tag", {"experiment_id": ids["first"], "key": "team"})
    both.get("experiments/get", {"experiment_id": ids["first"]})
    both.post("experiments/update", {"experiment_id": ids["second"], "new_name": "renamed"})
    both.post("experiments/update", {"experiment_id": ids["second"]})
    both.post("experiments/update", {"experiment_id": "987654", "new_name": "x"})
    both.post("experiments/delete", {"experiment_id": ids["Third"]})
    both.post("experiments/delete", {"experiment_id": ids["Third"]})
    both.get("experiments/get", {"experiment_id": ids["Third"]})
    both.get("experiments/get-by-name", {"experiment_name": "Third"})
    both.post("experiments/set-experiment-tag", {"experiment_id": ids["Third"], "key": "k", "value": "v"})
    both.post("runs/create", {"experiment_id": ids["Third"], "start_time": 1})
    for body in [
        {},
        {"view_type": "ALL"},
        {"view_type": "DELETED_ONLY"},
        {"view_type": "ACTIVE_ONLY"},
        {"filter": "name = 'first'"},
        {"filter": "name != 'first'"},
        {"filter": "name LIKE 'fir%'"},
        {"filter": "name ILIKE 'FIR%'"},
        {"filter": "attribute.name LIKE '%e%'"},
        {"filter": "tags.team = 'r'"},
        {"filter": "tags.team != 's'"},
        {"filter": "tags.`a.b c` = '1' AND name LIKE '%s%'"},
        {"filter": "tags.team ILIKE 'S'"},
        {"filter": "creation_time > 0"},
        {"filter": "last_update_time < 5"},
        {"order_by": ["name"]},
        {"order_by": ["name DESC"]},
        {"order_by": ["experiment_id ASC"]},
        {"order_by": ["creation_time DESC", "name ASC"]},
        {"max_results": 2},
    ]:
        both.post("experiments/search", {"max_results": 50, **body})
    for query in [{}, {"view_type": "ALL"}, {"filter": "name LIKE '%e%'", "order_by": "name DESC"}]:
        both.get("experiments/search", {"max_results": 50, **query})
    page = both.post("experiments/search", {"max_results": 2, "order_by": ["name"]})["next_page_token"]
    both.post("experiments/search", {"max_results": 2, "order_by": ["name"], "page_token": page})
    for body in [
        {"filter": "name"},
        {"filter": "name = first"},
        {"filter": "name = 'a' OR name = 'b'"},
        {"filter": "nme = 'a'"},
        {"filter": "name > 'a'"},
        {"filter": "metrics.a > 1"},
        {"filter": "creation_time = 'x'"},
        {"filter": "name = 'x'; DROP TABLE experiments"},
        {"order_by": ["nothing"]},
        {"order_by": ["name SIDEWAYS"]},
        {"max_results": 50001},
        {"max_results": -1},
        {"page_token": "nonsense"},
    ]:
        both.post("experiments/search", {"max_results": 50, **body}, words=False)
    both.post("experiments/restore", {"experiment_id": ids["Third"]})
    both.post("experiments/restore", {"experiment_id": ids["Third"]})
    both.post("experiments/restore", {"experiment_id": "987654"})
    return ids["first"], ids["second"]


def runs(both, first, second):
    made = []
    for index in range(6):
        body = {
            "experiment_id": first,
            "start_time": 1000 + index,
            "run_name": f"run {index}",
            "user_id": "somebody",
            "tags": [{"key": "kind", "value": "even" if index % 2 == 0 else "odd"}, {"key": "k b", "value": "ü"}],
        }
        made.append(both.post("runs/create", body)["run"]["info"]["run_id"])
    for body in [
        {"experiment_id": second, "start_time": 5},
        {"experiment_id": second, "start_time": 5, "tags": [{"key": "mlflow.runName", "value": "by its tag"}]},
    ]:
        both.post("runs/create", body)
    for body in [
        {"experiment_id": "987654", "start_time": 1},
        {"experiment_id": "abc", "start_time": 1},
        {"experiment_id": second, "run_name": "a", "tags": [{"key": "mlflow.runName", "value": "b"}]},
        {"experiment_id": second, "start_time": "soon"},
    ]:
        both.post("runs/create", body, words=False)
    run = made[0]
    for body in [
        {"key": "loss", "value": 0.5, "timestamp": 10, "step": 1},
        {"key": "loss", "value": 0.25, "timestamp": 11, "step": 2},
        {"key": "loss", "value": 0.25, "timestamp": 11, "step": 2},
        {"key": "loss", "value": 0.75, "timestamp": 9, "step": 2},
        {"key": "nan", "value": "NaN", "timestamp": 1},
        {"key": "inf", "value": "Infinity", "timestamp": 1},
        {"key": "ninf", "value": "-Infinity", "timestamp": 1},
        {"key": "step -1", "value": 1, "timestamp": 1, "step": -1},
        {"key": "a/b.c-d_e f", "value": 1e-300, "timestamp": 1, "step": 9007199254740993},
        {"key": "int", "value": 3, "timestamp": 1},
        {"key": "on data", "value": 3, "timestamp": 1, "dataset_name": "d", "dataset_digest": "1"},
    ]:
        both.post("runs/log-metric", {"run_id": run, **body})
    for body in [
        {"key": "a//b", "value": 1, "timestamp": 1},
        {"key": "../x", "value": 1, "timestamp": 1},
        {"key": "", "value": 1, "timestamp": 1},
        {"key": "x" * 251, "value": 1, "timestamp": 1},
        {"key": "bad*", "value": 1, "timestamp": 1},
        {"key": "m", "timestamp": 1},
        {"value": 1, "timestamp": 1},
        {"key": "m", "value": 1},
        {"key": "m", "value": "many", "timestamp": 1},
        {"key": "m", "value": 1, "timestamp": "late"},
        {"key": "m", "value": 1, "timestamp": 1, "step": "x"},
        {"key": "m", "value": None, "timestamp": 1},
    ]:
        both.post("runs/log-metric", {"run_id": run, **body}, words=False)
    both.post("runs/log-metric", {"run_id": "0" * 32, "key": "m", "value": 1, "timestamp": 1})
    both.post("runs/log-metric", {"key": "m", "value": 1, "timestamp": 1}, words=False)
    for body in [
        {"key": "lr", "value": "0.1"},
        {"key": "lr", "value": "0.1"},
        {"key": "depth", "value": "3"},
        {"key": "empty", "value": ""},
        {"key": "long", "value": "x" * 6000},
        {"key": "unicode ü", "value": "ü"},
    ]:
        both.post("runs/log-parameter", {"run_id": run, **body})
    for body in [
        {"key": "lr", "value": "0.2"},
        {"key": "", "value": "x"},
        {"value": "x"},
        {"key": "x" * 251, "value": "x"},
        {"key": "a//b", "value": "x"},
        {"key": "bad*", "value": "1"},
        {"key": "/a", "value": "1"},
        {"key": "n", "value": 3},
        {"key": "n", "value": None},
    ]:
        both.post("runs/log-parameter", {"run_id": run, **body}, words=False)
    for body in [
        {"key": "t", "value": "1"},
        {"key": "t", "value": "2"},
        {"key": "mlflow.runName", "value": "renamed by tag"},
        {"key": "long", "value": "y" * 8000},
        {"key": "empty", "value": ""},
    ]:
        both.post("runs/set-tag", {"run_id": run, **body})
    for body in [
        {"key": "", "value": "x"},
        {"key": "x" * 251, "value": "x"},
        {"key": "a//b", "value": "x"},
        {"value": "x"},
        {"key": "n", "value": 3},
    ]:
        both.post("runs/set-tag", {"run_id": run, **body}, words=False)
    both.post("runs/set-tag", {"run_id": "0" * 32, "key": "t", "value": "1"})
    both.post("runs/delete-tag", {"run_id": run, "key": "t"})
    both.post("runs/delete-tag", {"run_id": run, "key": "t"})
    both.get("runs/get", {"run_id": run})
    both.get("runs/get", {"run_uuid": run})
    both.get("runs/get", {"run_id": "0" * 32})
    both.get("runs/get", {}, words=False)
    both.get("runs/get", {"run_id": "../../x"}, words=False)
    for index, other in enumerate(made[1:], 1):
        both.post(
            "runs/log-batch",
            {
                "run_id": other,
                "metrics": [
                    {"key": "acc", "value": v, "timestamp": 100 + s, "step": s}
                    for s, v in enumerate([0.1, index / 4, "NaN" if index == 5 else index / 2])
                ],
                "params": [
                    {"key": "depth", "value": str(index)},
                    {"key": "opt", "value": "Adam" if index > 2 else "sgd"},
                ],
                "tags": [{"key": "note", "value": f"n{index}"}],
            },
        )
    point = {"key": "many", "value": 1, "timestamp": 1, "step": 0}
    for body in [
        {},
        {"metrics": [dict(point, step=s) for s in range(1000)]},
        {"metrics": [dict(point, step=s) for s in range(1001)]},
        {"params": [{"key": f"p{i}", "value": "1"} for i in range(100)]},
        {"params": [{"key": f"q{i}", "value": "1"} for i in range(101)]},
        {"tags": [{"key": f"t{i}", "value": "1"} for i in range(101)]},
        {"metrics": [dict(point, key="m1")] * 500, "params": [], "tags": [{"key": "tt", "value": "1"}] * 100},
        {"params": [{"key": "twice", "value": "1"}, {"key": "twice", "value": "1"}]},
        {"params": [{"key": "other", "value": "1"}, {"key": "other", "value": "2"}]},
        {"params": [{"key": "depth", "value": "99"}], "metrics": [dict(point, key="not there")]},
        {"metrics": [{"key": "x"}]},
        {"metrics": [{"key": "bad*", "value": 1, "timestamp": 1, "step": 0}]},
        {"metrics": "x"},
        {"metrics": [7]},
        {"params": [{"value": "1"}]},
        {"tags": [{"key": "a//b", "value": "1"}]},
        {"metrics": [dict(point, key="y" * 251)]},
    ]:
        both.post("runs/log-batch", {"run_id": made[1], **body}, words=False)
    both.post("runs/log-batch", {"run_id": "0" * 32})
    both.post("runs/log-batch", {"metrics": []}, words=False)
    both.get("runs/get", {"run_id": made[1]})
    for broken in [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"run_id": ',
        b"\xff\xfe",
        b'"text"',
        b'{"run_id": 7}',
        b'{"run_id": ["a"]}',
    ]:
        both.call("POST", "runs/log-batch", broken, words=False)
    histories(both, run, made)
    updates(both, made)
    searches(both, first, second)
    return made


def histories(both, run, made):
    both.get("metrics/get-history", {"run_id": run, "metric_key": "loss"})
    both.get("metrics/get-history", {"run_uuid": run, "metric_key": "a/b.c-d_e f"})
    both.get("metrics/get-history", {"run_id": run, "metric_key": "nan"})
    both.get("metrics/get-history", {"run_id": run, "metric_key": "none"})
    page = both.get("metrics/get-history", {"run_id": run, "metric_key": "loss", "max_results": 2})["next_page_token"]
    both.get("metrics/get-history", {"run_id": run, "metric_key": "loss", "max_results": 2, "page_token": page})
    for query in [{"run_id": run}, {"metric_key": "loss"}, {"run_id": run, "metric_key": "loss", "page_token": "?"}]:
        both.get("metrics/get-history", query, words=False)
    several = [("run_id", each) for each in made[1:4]]
    bulk = "/ajax-api/2.0/mlflow/"
    for query in [
        [("metric_key", "acc"), *several],
        [("metric_key", "acc"), ("max_results", 2), *several[:1]],
        [("metric_key", "acc")],
        several,
    ]:
        both.get("metrics/get-history-bulk", query, root=bulk, words=False, unordered="metrics")
    several = [("run_ids", each) for each in made[1:4]]
    for query in [
        [("metric_key", "acc"), *several],
        [("metric_key", "acc"), ("max_results", 2), *several],
        [("metric_key", "acc"), ("start_step", 1), ("end_step", 2), *several],
        [("metric_key", "acc"), ("start_step", 1), *several],
        [("metric_key", "acc"), ("start_step", 2), ("end_step", 1), *several],
        [("metric_key", "acc"), ("max_results", 0), *several],
        [("metric_key", "acc"), ("max_results", 2501), *several],
        [("metric_key", "many"), ("max_results", 7), ("run_ids", made[1])],
        [("metric_key", "acc")],
        several,
    ]:
        both.get("metrics/get-history-bulk-interval", query, root=bulk, words=False)


def updates(both, made):
    for body in [
        {"status": "FINISHED", "end_time": 5000},
        {"status": "RUNNING"},
        {"run_name": "new name"},
        {"status": "FAILED", "end_time": 6000, "run_name": "x"},
        {"status": "KILLED"},
        {"status": "SCHEDULED"},
        {},
    ]:
        both.post("runs/update", {"run_id": made[2], **body})
    both.get("runs/get", {"run_id": made[2]})
    both.post("runs/update", {"run_id": made[2], "end_time": "x"}, words=False)
    both.post("runs/update", {"run_id": "0" * 32, "status": "FINISHED"})
    both.post("runs/update", {"status": "FINISHED"}, words=False)
    both.post("runs/delete", {"run_id": made[5]})
    both.post("runs/delete", {"run_id": made[5]})
    both.get("runs/get", {"run_id": made[5]})
    for path, body in [
        ("log-metric", {"key": "m", "value": 1, "timestamp": 1}),
        ("log-parameter", {"key": "p", "value": "1"}),
        ("set-tag", {"key": "t", "value": "1"}),
        ("log-batch", {"tags": [{"key": "t", "value": "1"}]}),
        ("delete-tag", {"key": "kind"}),
        ("update", {"status": "FINISHED"}),
    ]:
        both.post(f"runs/{path}", {"run_id": made[5], **body})
    both.post("runs/restore", {"run_id": made[5]})
    both.post("runs/restore", {"run_id": made[5]})
    both.post("runs/delete", {"run_id": "0" * 32})
    both.post("runs/restore", {"run_id": "0" * 32})
    both.post("runs/delete", {}, words=False)


def searches(both, first, second):
    whole = {"experiment_ids": [first], "max_results": 20}
    for text in [
        "",
        "metrics.acc > 0.5",
        "metrics.acc >= 1",
        "metrics.acc = 0.5",
        "metrics.acc != 0.5",
        "metrics.acc < 1",
        "metrics.acc <= 1 AND params.opt = 'Adam'",
        "params.opt = 'sgd'",
        "params.opt != 'sgd'",
        "params.opt LIKE 'A%'",
        "params.opt ILIKE 'a%'",
        "params.opt LIKE 'a%'",
        "parameter.depth = '3'",
        "tags.kind = 'odd'",
        "tag.kind != 'odd'",
        "tags.`k b` = 'ü'",
        "tags.\"k b\" LIKE '%'",
        "tags.note ILIKE 'N_'",
        "params.opt IS NULL",
        "params.opt IS NOT NULL",
        "tags.note IS NULL",
        "tags.none IS NULL AND tags.kind = 'even'",
        "attributes.status = 'RUNNING'",
        "status != 'RUNNING'",
        "attributes.run_name = 'run 3'",
        "attribute.`run name` LIKE 'run%'",
        "run_name ILIKE 'RUN%'",
        "attributes.start_time > 1000",
        "start_time <= 1001",
        "end_time > 0",
        "attributes.artifact_uri LIKE 'mlflow%'",
        "metrics.`a/b.c-d_e f` > 0",
        "metrics.nan > 0",
        "metrics.inf > 1",
        "metrics.ninf < 0",
        "metrics.none > 0",
        "status = 'RUNNING' and params.depth = '3' And tags.kind = 'odd'",
        "params.lr = '0.1'",
        "tags.`mlflow.runName` = 'run 4'",
        "datasets.name = 'train'",
        "dataset.digest LIKE '1%'",
        "datasets.context = 'training'",
        "  status   =  'RUNNING'  ",
    ]:
        both.post("runs/search", {**whole, "filter": text})
    for order in [
        ["metrics.acc"],
        ["metrics.acc DESC"],
        ["metrics.acc ASC", "start_time DESC"],
        ["params.depth DESC"],
        ["params.opt", "params.depth"],
        ["tags.note"],
        ["attributes.start_time"],
        ["start_time DESC"],
        ["attribute.run_name DESC"],
        ["status"],
        ["metrics.nan DESC"],
        ["tags.`k b`"],
        ["attributes.end_time"],
        ["metrics.`a/b.c-d_e f`"],
        ["created DESC"],
    ]:
        # Which of two equal runs is first is a matter of their ids.
        by = [*order, "tags.kind", "start_time"] if "start_time" not in str(order) else order
        both.post("runs/search", {**whole, "order_by": by})
    for body in [
        {"run_view_type": "ALL"},
        {"run_view_type": "DELETED_ONLY"},
        {"experiment_ids": [first, second], "filter": "tags.kind LIKE '%'"},
        {"experiment_ids": []},
        {"experiment_ids": ["987654"]},
    ]:
        both.post("runs/search", {**whole, "order_by": ["tags.kind", "run_name"], **body})
    page = {**whole, "max_results": 2, "order_by": ["run_name"]}
    for _ in range(2):
        answer = both.post("runs/search", page)
        page = {**page, "page_token": answer["next_page_token"]}
    both.post("runs/search", page)
    for body in [
        {"filter": "metrics.acc"},
        {"filter": "metrics.acc > 'x'"},
        {"filter": "metrics.acc LIKE '1'"},
        {"filter": "params.opt > 'a'"},
        {"filter": "params.opt = 7"},
        {"filter": "acc > 1"},
        {"filter": "metric.acc > 1 OR metric.acc < 0"},
        {"filter": "status = RUNNING"},
        {"filter": "(status = 'RUNNING')"},
        {"filter": "tags.a = 'b"},
        {"filter": "nothing.a = 'b'"},
        {"filter": "'; DROP TABLE runs; --"},
        {"filter": "status IN ()"},
        {"filter": "attributes.run_name IN ('run 1')"},
        {"filter": "run_name NOT IN ('a')"},
        {"filter": "params.opt IN ('a')"},
        {"filter": "metrics.acc IS NULL"},
        {"filter": "start_time > 'x'"},
        {"filter": "attributes.nothing = 'x'"},
        {"filter": "datasets.nothing = 'x'"},
        {"filter": "= 'x'"},
        {"order_by": ["nothing.x"]},
        {"order_by": ["metrics.acc UP"]},
        {"order_by": [""]},
        {"order_by": ["datasets.name"]},
        {"max_results": 0},
        {"max_results": -1},
        {"max_results": 50001},
        {"max_results": "x"},
        {"page_token": "nonsense"},
        {"experiment_ids": "x"},
    ]:
        both.post("runs/search", {**whole, **body}, words=False)
