"""Calls services of a mesh with gRPC's own library, or is one, as told by lines of JSON on standard input.

A line is {"target": "xds:///HOST:PORT", "calls": N, "metadata": {...}, "timeout": SECONDS, "fresh": BOOL}; the answer is a line
{"answers": {UPSTREAM: COUNT}, "errors": {STATUS: [TEXT, ...]}}. A line {"serve": "IP:PORT"} begins to serve there, as far as the
control plane lets it, and answers what arrives with its name; it is answered by an empty line of that form. The configuration of the library is the bootstrap named by
GRPC_XDS_BOOTSTRAP.
"""

import collections
import concurrent.futures
import json
import sys

import grpc


def call(channel, request):
    method = channel.unary_unary(
        "/test.Echo/Say",
        request_serializer=lambda message: message,
        response_deserializer=lambda message: message,
    )
    answers = collections.Counter()
    errors = collections.defaultdict(list)
    metadata = tuple(request.get("metadata", {}).items())
    for _ in range(request.get("calls", 1)):
        try:
            answer = method(b"", metadata=metadata, timeout=request.get("timeout", 20), wait_for_ready=request.get("wait", True))
            answers[json.loads(answer)["upstream"]] += 1
        except grpc.RpcError as error:
            texts = errors[error.code().name]
            if len(texts) < 3:
                texts.append(error.details())
    return {"answers": answers, "errors": errors}


def serve(address):
    method = grpc.unary_unary_rpc_method_handler(lambda request, context: json.dumps({"upstream": "grpc"}).encode())
    handler = grpc.method_handlers_generic_handler("test.Echo", {"Say": method})
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=4), handlers=[handler], xds=True)
    server.add_secure_port(address, grpc.xds_server_credentials(grpc.insecure_server_credentials()))
    server.start()
    return server


def main():
    channels = {}
    servers = []
    for line in sys.stdin:
        request = json.loads(line)
        if "serve" in request:
            servers.append(serve(request["serve"]))
            print(json.dumps({"answers": {}, "errors": {}}), flush=True)
            continue
        target = request["target"]
        if target not in channels:
            channels[target] = grpc.insecure_channel(target)
        print(json.dumps(call(channels[target], request)), flush=True)


if __name__ == "__main__":
    main()
