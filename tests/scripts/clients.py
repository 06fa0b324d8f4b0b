"""Talks to a daemon as strangers would: grpcio by reflection, and the unmodified mlflow package.

    clients.py ENDPOINT TOKEN_FILE JOB

JOB is a completed run of examples/digits. No file of this project's is imported.
"""

import os
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

DEADLINE = 10


class WithToken(grpc.UnaryUnaryClientInterceptor, grpc.StreamStreamClientInterceptor):
    def __init__(self, token):
        self.metadata = [("authorization", f"Bearer {token}")]

    def _with(self, details):
        return details._replace(metadata=[*(details.metadata or ()), *self.metadata])

    def intercept_unary_unary(self, go_on, details, request):
        return go_on(self._with(details), request)

    def intercept_stream_stream(self, go_on, details, requests):
        return go_on(self._with(details), requests)


def call(channel, pool, service, method, **fields):
    described = pool.FindServiceByName(service).methods_by_name[method]
    request = message_factory.GetMessageClass(described.input_type)
    answer = message_factory.GetMessageClass(described.output_type)
    rpc = channel.unary_unary(
        f"/{service}/{method}",
        request_serializer=request.SerializeToString,
        response_deserializer=answer.FromString,
    )
    return rpc(request(**fields), timeout=DEADLINE)


def refused_with(code, action):
    try:
        action()
    except grpc.RpcError as error:
        assert error.code() == code, f"wanted {code}, got {error.code()}: {error.details()}"
        assert error.details(), f"{code} came without a message"
        return
    raise AssertionError(f"wanted {code}, but the call succeeded")


def check_grpc(endpoint, token, job):
    target = urlsplit(endpoint).netloc
    with grpc.insecure_channel(target) as plain:
        channel = grpc.intercept_channel(plain, WithToken(token))
        database = ProtoReflectionDescriptorDatabase(channel)
        services = set(database.get_services())
        for service in ("job", "compute", "workspace"):
            full = f"atelier.{service}.v1.{service.capitalize()}Service"
            assert full in services, f"reflection does not know {full}: {sorted(services)}"
        pool = descriptor_pool.DescriptorPool(database)

        status = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service=""), timeout=DEADLINE
        ).status
        assert status == health_pb2.HealthCheckResponse.SERVING, status

        jobs = "atelier.job.v1.JobService"
        found = call(channel, pool, jobs, "GetJob", name=job)
        assert found.name == job, found
        assert found.metrics["test_accuracy"] > 0.9, dict(found.metrics)
        listed = call(channel, pool, jobs, "ListJobs", page_size=1)
        assert len(listed.jobs) == 1 and listed.next_page_token, "a page of one leads to the next"
        refused_with(
            grpc.StatusCode.NOT_FOUND, lambda: call(channel, pool, jobs, "GetJob", name="no-such-job")
        )
        refused_with(
            grpc.StatusCode.UNAUTHENTICATED, lambda: call(plain, pool, jobs, "GetJob", name=job)
        )
    print(f"grpcio {grpc.__version__}: {len(services)} services by reflection")


def check_mlflow(endpoint, token, job):
    os.environ["MLFLOW_TRACKING_URI"] = endpoint
    os.environ["MLFLOW_TRACKING_TOKEN"] = token
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "1"
    import mlflow
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    trained = client.get_run(job)
    assert trained.info.status == "FINISHED", trained.info
    assert trained.data.params["epochs"] == "25", trained.data.params
    history = client.get_metric_history(job, "test_accuracy")
    assert [point.step for point in history] == list(range(1, 26)), history
    assert history[-1].value == trained.data.metrics["test_accuracy"]

    mlflow.set_experiment("public-clients")
    with mlflow.start_run(run_name="one") as run:
        mlflow.log_param("alpha", 0.5)
        mlflow.log_params({"beta": "two", "gamma": True})
        mlflow.set_tags({"colour": "green"})
        mlflow.log_metric("loss", 1.0, step=0)
        mlflow.log_metrics({"loss": 0.25, "accuracy": 0.75}, step=1)
        mlflow.log_text("hello\n", "notes/hello.txt")
    name = run.info.run_id
    with mlflow.start_run(run_id=name):
        mlflow.log_metric("loss", 0.125, step=2)
    again = client.get_run(name)
    assert again.info.status == "FINISHED", again.info
    assert again.data.params == {"alpha": "0.5", "beta": "two", "gamma": "True"}, again.data.params
    assert again.data.tags["colour"] == "green", again.data.tags
    assert again.data.metrics == {"loss": 0.125, "accuracy": 0.75}, again.data.metrics
    assert [point.value for point in client.get_metric_history(name, "loss")] == [1.0, 0.25, 0.125]
    found = client.search_runs(
        [again.info.experiment_id],
        filter_string="metrics.loss < 0.2 and params.beta = 'two' and tags.colour LIKE 'gr%'",
    )
    assert [run.info.run_id for run in found] == [name], found
    with tempfile.TemporaryDirectory() as folder:
        path = mlflow.artifacts.download_artifacts(
            run_id=name, artifact_path="notes/hello.txt", dst_path=folder
        )
        assert Path(path).read_text() == "hello\n"
    print(f"mlflow {mlflow.__version__}: run {name} written, resumed, searched and read back")


def main():
    endpoint, token_file, job = sys.argv[1:]
    token = Path(token_file).read_text().strip()
    check_grpc(endpoint, token, job)
    check_mlflow(endpoint, token, job)


if __name__ == "__main__":
    main()
