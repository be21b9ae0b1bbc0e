"""Takes up streaming sessions with clients from PyPI: kubernetes' own, and websocket-client, which that is built on.

    client.py SCENARIO ARGUMENT...

Each scenario is a function below; it says which program the session must have been made for. The exit status tells
whether everything came as it should.
"""

import base64
import json
import ssl
import struct
import sys
import zlib

import websocket
from kubernetes.client import Configuration
from kubernetes.stream.ws_client import WSClient, get_websocket_url, portforward_call

# Seconds, of anything: far more than it takes.
LIMIT = 60

STDIN, STDOUT, STDERR, ERROR, RESIZE = range(5)


def begin(url, protocol=None, certificate=None):
    configuration = Configuration()
    configuration.ssl_ca_cert = certificate
    headers = {"sec-websocket-protocol": protocol} if protocol else None
    return WSClient(configuration, get_websocket_url(url), headers, capture_all=True)


def end(client):
    client.run_forever(timeout=LIMIT)
    assert not client.is_open(), "the session does not end"
    return client.returncode


def equal(found, expected):
    assert found == expected, f"{found!r} is not {expected!r}"


def streams(url, certificate=None):
    """echo out; echo err >&2; exit 7"""
    client = begin(url, certificate=certificate)
    equal(client.subprotocol, "v5.channel.k8s.io")
    equal(end(client), 7)
    equal((client.read_channel(STDOUT), client.read_channel(STDERR)), ("out\n", "err\n"))


def input(url):
    """cat; echo end; exit 4"""
    client = begin(url)
    client.write_stdin("first\n")
    equal(client.readline_stdout(timeout=LIMIT), "first")
    client.write_stdin("second\n")
    client.close_channel(STDIN)
    equal(end(client), 4)
    equal(client.read_channel(STDOUT), "second\nend\n")


def whole(url):
    """seq 1 300000"""
    client = begin(url, "v4.channel.k8s.io")
    equal(end(client), 0)
    assert client.read_channel(STDOUT) == "".join(f"{number}\n" for number in range(1, 300001)), "output is lost"


def terminal(url):
    """stty -echo; echo ready; until it is 33 high and 101 wide; echo sized; read line; echo got $line; exit 9"""
    client = begin(url, "v4.channel.k8s.io")
    equal(client.subprotocol, "v4.channel.k8s.io")
    equal(client.readline_stdout(timeout=LIMIT), "ready\r")
    client.write_channel(RESIZE, json.dumps({"Height": 33, "Width": 101}))
    equal(client.readline_stdout(timeout=LIMIT), "sized\r")
    client.write_stdin("word\n")
    equal(end(client), 9)
    equal(client.read_channel(STDOUT), "got word\r\n")


def attach(url):
    """A container with stdin_once that answers `got LINE` to each line, and `end` to the end."""
    client = begin(url)
    client.write_stdin("one\n")
    equal(client.readline_stdout(timeout=LIMIT), "got one")
    client.close_channel(STDIN)
    equal(end(client), 0)
    equal(client.read_channel(STDOUT), "end\n")


def forward(url, first, nobody, second):
    """Ports of which two serve HTTP and one is nobody's, in this order."""
    ports = [int(first), int(nobody), int(second)]
    query = [("ports", ",".join(map(str, ports)))]
    session = portforward_call(Configuration(), "GET", url, query_params=query)
    refused = session.socket(ports[1])
    refused.settimeout(LIMIT)
    equal(refused.recv(1), b"")
    assert "refused" in session.error(ports[1]), session.error(ports[1])
    for port in (ports[0], ports[2]):
        connection = session.socket(port)
        connection.settimeout(LIMIT)
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        while b"ahoy" not in answer:
            more = connection.recv(4096)
            assert more, answer
            answer += more
        equal(session.error(port), None)
    session.close()


def subprotocols(*urls):
    """read line; echo got $line; echo err >&2; exit 3"""
    offers = [
        (["v5.channel.k8s.io"], "v5.channel.k8s.io"),
        (["v4.channel.k8s.io"], "v4.channel.k8s.io"),
        (["v4.base64.channel.k8s.io"], "v4.base64.channel.k8s.io"),
        (["channel.k8s.io"], "channel.k8s.io"),
        (["base64.channel.k8s.io"], "base64.channel.k8s.io"),
        (["v9.channel.k8s.io", "v4.channel.k8s.io"], "v4.channel.k8s.io"),
        (None, None),
    ]
    urls = list(urls)
    for offered, chosen in offers:
        speak(urls.pop(), offered, chosen)
    try:
        speak(urls.pop(), ["v9.channel.k8s.io"], None)
    except websocket.WebSocketBadStatusException as refusal:
        equal(refusal.status_code, 403)
    else:
        raise AssertionError("a subprotocol that nobody speaks was accepted")
    equal(urls, [])


def speak(url, offered, chosen):
    client = websocket.create_connection(get_websocket_url(url), subprotocols=offered, timeout=LIMIT)
    equal(client.subprotocol, chosen)
    in_base64 = chosen is not None and "base64" in chosen
    if in_base64:
        client.send("0" + base64.b64encode(b"hello\n").decode())
    else:
        client.send_binary(b"\x00hello\n")
    said = {}
    while True:
        opcode, message = client.recv_data()
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            break
        channel = message[0] - ord("0") if in_base64 else message[0]
        said[channel] = said.get(channel, b"") + (base64.b64decode(message[1:]) if in_base64 else message[1:])
    equal((said[STDOUT], said[STDERR]), (b"got hello\n", b"err\n"))
    if chosen is not None and chosen.startswith(("v4", "v5")):
        equal(json.loads(said[ERROR])["details"]["causes"][0]["message"], "3")
    else:
        assert b"exit code 3" in said[ERROR], said


def tunnel(url, port):
    """A port that serves HTTP, through SPDY in a WebSocket: by hand, for no client of Python's speaks it."""
    protocol = "SPDY/3.1+portforward.k8s.io"
    client = websocket.create_connection(get_websocket_url(url), subprotocols=[protocol], timeout=LIMIT)
    # The client writes it small.
    equal(client.subprotocol.lower(), protocol.lower())
    deflater = zlib.compressobj()

    def open_stream(stream, kind):
        headers = [(b"streamtype", kind), (b"port", port.encode()), (b"requestid", b"0")]
        block = struct.pack(">I", len(headers))
        for word in (word for header in headers for word in header):
            block += struct.pack(">I", len(word)) + word
        block = deflater.compress(block) + deflater.flush(zlib.Z_SYNC_FLUSH)
        # SYN_STREAM of SPDY's third version: length, stream, and no associated one, priority or slot.
        client.send_binary(struct.pack(">HHIIIH", 0x8003, 1, 10 + len(block), stream, 0, 0) + block)

    open_stream(1, b"error")
    open_stream(3, b"data")
    request = b"GET / HTTP/1.0\r\n\r\n"
    client.send_binary(struct.pack(">II", 3, len(request)) + request)
    heard = b""
    while b"ahoy" not in heard:
        heard += client.recv()
    client.close()


def distrust(url):
    """A URL whose server's certificate no authority has signed."""
    try:
        begin(url)
    except ssl.SSLCertVerificationError:
        return
    raise AssertionError("an unknown certificate was trusted")


if __name__ == "__main__":
    scenarios = [streams, input, whole, terminal, attach, forward, subprotocols, tunnel, distrust]
    {scenario.__name__: scenario for scenario in scenarios}[sys.argv[1]](*sys.argv[2:])
