"""What Schemathesis cannot make up by itself: pictures, files of an export, places that hold pictures.

The environment names them; see cli/tests/it/contract.rs.
"""

import base64
import datetime
import json
import os
import pathlib
import uuid

import schemathesis
from hypothesis import strategies as st
from schemathesis.core.parameters import ParameterLocation
from schemathesis.generation.meta import TestPhase

PICTURE = pathlib.Path(os.environ["CONTRACT_PICTURE"]).read_bytes()
# A manifest of a batch, and an export of a collection: both are NDJSON.
MANIFEST = pathlib.Path(os.environ["CONTRACT_MANIFEST"]).read_bytes()
EXPORT = pathlib.Path(os.environ["CONTRACT_EXPORT"]).read_bytes()
# A model's entry in the catalogue.
ENTRY = pathlib.Path(os.environ["CONTRACT_ENTRY"]).read_bytes()
# Where a batch finds pictures, as the API takes it.
SOURCE = json.loads(os.environ["CONTRACT_SOURCE"])
# What is there, by the names that paths have for it.
SEEDED = json.loads(os.environ["CONTRACT_SEEDED"])
COLLECTION = SEEDED["collection"]
# One of the catalogue that the seeded collection does not go by.
OTHER_PIPELINE = "tiny-swapped"
# Thresholds of a pipeline that no collection goes by: nothing is decided otherwise for it.
CALIBRATION = {
    "pipeline": "tiny-sure",
    "collection": COLLECTION,
    "points": [
        {"far": 0.1, "cosine": 0.1, "lower": 0.05, "upper": 0.2},
        {"far": 0.01, "cosine": 0.3, "lower": 0.005, "upper": 0.02},
    ],
    "measured_far": 0.01,
    "people": 100,
    "faces": 150,
    "comparisons": 11000,
    "confidence": 0.99,
}
# What would leave the seeded rows in a state in which the other requests are refused.
ONCE_ONLY = ("/merge", "/cancel", "/activate", "/rollback", "/prune")
# The id of the key that is used: it is neither revoked nor rotated, or nothing would be tried any more. Nor is the seeded
# collection deleted, or nothing would be there to be tried.
OWN_KEY = os.environ["CONTRACT_KEY_ID"]

schemathesis.openapi.format("byte", st.just(base64.b64encode(PICTURE).decode()))
schemathesis.openapi.format("binary", st.just(PICTURE))
schemathesis.openapi.format("uri", st.integers(0, 9).map(lambda n: f"https://hooks-{n}.example.com/face-id"))
# Instants are in UTC here, with Z.
INSTANTS = st.datetimes(min_value=datetime.datetime(1970, 1, 1), max_value=datetime.datetime(2100, 1, 1))
schemathesis.openapi.format("date-time", INSTANTS.map(lambda at: at.isoformat(timespec="seconds") + "Z"))
schemathesis.openapi.media_type("application/octet-stream", st.just(PICTURE))
schemathesis.openapi.media_type("application/x-ndjson", st.sampled_from([MANIFEST, EXPORT]))
schemathesis.openapi.media_type("application/toml", st.just(ENTRY))


@schemathesis.hook
def map_case(context, case):
    """Has good requests name what is there."""
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return case
    # Not what a link leads to, and not what would be gone for all others.
    is_gentle = case.method != "DELETE" and not case.operation.path.endswith(ONCE_ONLY)
    if case.path_parameters and is_gentle and case.meta.phase.name != TestPhase.STATEFUL:
        case.path_parameters.update({name: SEEDED[name] for name in case.path_parameters if name in SEEDED})
    for named in (case.body, case.query):
        # An endpoint that nobody made is refused, and every good request would be.
        if isinstance(named, dict) and named.get("webhook_endpoint_ids"):
            named["webhook_endpoint_ids"] = [SEEDED["endpoint"]] if named is case.body else SEEDED["endpoint"]
    # So is a tag of what was there at another time.
    if case.headers:
        case.headers.pop("If-Match", None)
    # And a cursor that no list has given.
    if case.query:
        case.query.pop("cursor", None)
    if case.operation.label == "POST /v1/collections/{collection}/reprocess" and isinstance(case.body, dict):
        case.body["pipeline"] = OTHER_PIPELINE
    if case.operation.label == "POST /v1/calibrations" and isinstance(case.body, dict):
        # Numbers that fit together are not to be had by chance.
        case.body.update(CALIBRATION)
    if case.operation.label == "POST /v1/batches":
        if isinstance(case.body, dict):
            case.body.update({"source": SOURCE, "collection": COLLECTION})
        else:
            case.query.update({"collection": COLLECTION, "kind": "index"})
    return case


@schemathesis.hook
def before_call(context, case, kwargs):
    """Keeps the key that is used and the seeded collection, and has bad files be bad."""
    values = case.path_parameters or {}
    if case.method in ("DELETE", "POST") and values.get("key") == OWN_KEY:
        values["key"] = str(uuid.uuid4())
    if case.method == "DELETE" and list(values) == ["collection"] and values["collection"] in (COLLECTION, "c"):
        values["collection"] = str(uuid.uuid4())
    # The strategies above make good files only, for requests that are to have a bad one too.
    is_bad = case.meta is not None and case.meta.is_negative_at(ParameterLocation.BODY)
    if is_bad and case.body in (PICTURE, MANIFEST, EXPORT, ENTRY):
        case.body = b"neither a picture nor a line"
