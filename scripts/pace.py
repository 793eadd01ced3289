"""A TCP proxy that makes a server on loopback as far away as one on a network: what the client sends arrives DELAY ms later, what the
server answers comes at RATE MB/s per connection from the first byte.

    python3 scripts/pace.py PORT --delay 20 --rate 60    prints its own port; ends with its parent or a signal
"""

import argparse
import ctypes
import queue
import signal
import socket
import threading
import time

PIECE = 128 * 1024
PR_SET_PDEATHSIG = 1


def delayed(source, target, delay):
    """Passes on what comes, each piece `delay` seconds after it came, so that what is pipelined stays pipelined."""
    pieces = queue.Queue()

    def send():
        while True:
            due, data = pieces.get()
            time.sleep(max(0, due - time.monotonic()))
            try:
                target.sendall(data) if data else target.shutdown(socket.SHUT_WR)
            except OSError:
                return
            if not data:
                return

    threading.Thread(target=send, daemon=True).start()
    data = True
    while data:
        try:
            data = source.recv(PIECE)
        except OSError:
            data = b""
        pieces.put((time.monotonic() + delay, data))


def paced(source, target, rate):
    """Passes on at most `rate` bytes per second of what comes; a pause gives no credit."""
    due = 0
    try:
        while data := source.recv(PIECE):
            target.sendall(data)
            due = max(due, time.monotonic()) + len(data) / rate
            # Shorter waits are made up for by the next one.
            if (ahead := due - time.monotonic()) > 0.001:
                time.sleep(ahead)
    except OSError:
        pass
    finally:
        # Whoever hangs up ends both directions.
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def serve(client, port, delay, rate):
    try:
        server = socket.create_connection(("127.0.0.1", port))
    except OSError:
        client.close()
        return
    for end in (client, server):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=delayed, args=(client, server, delay), daemon=True).start()
    with client, server:
        paced(server, client, rate)


def main():
    parser = argparse.ArgumentParser(description="see the first lines of this file")
    parser.add_argument("port", type=int)
    parser.add_argument("--delay", type=float, default=20, help="ms")
    parser.add_argument("--rate", type=float, default=60, help="MB/s per connection")
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    print(listener.getsockname()[1], flush=True)
    while True:
        client, _ = listener.accept()
        arguments = (client, options.port, options.delay / 1000, options.rate * 1e6)
        threading.Thread(target=serve, args=arguments, daemon=True).start()


if __name__ == "__main__":
    main()
