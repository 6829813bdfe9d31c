# SPDX-License-Identifier: Apache-2.0
"""Protocol buffers: `X.proto` becomes `X_pb2` and `X_pb2_grpc` when the project is built (`generate`)."""
