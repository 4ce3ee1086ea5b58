"""Calls services of a mesh with gRPC's own library, as told by lines of JSON on standard input.

A line is {"target": "xds:///HOST:PORT", "calls": N, "metadata": {...}, "timeout": SECONDS, "fresh": BOOL}; the answer is a line
{"answers": {UPSTREAM: COUNT}, "errors": {STATUS: [TEXT, ...]}}. The configuration of the library is the bootstrap named by
GRPC_XDS_BOOTSTRAP.
"""

import collections
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


def main():
    channels = {}
    for line in sys.stdin:
        request = json.loads(line)
        target = request["target"]
        if target not in channels:
            channels[target] = grpc.insecure_channel(target)
        print(json.dumps(call(channels[target], request)), flush=True)


if __name__ == "__main__":
    main()
