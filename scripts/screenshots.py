#!/usr/bin/env python3
"""Looks at the agent's page in headless Chromium and keeps pictures of it under docs/screenshots.

Builds two network namespaces (the agent's node, and one that plays all others), runs the agent there with services
that have clients, trouble and names, and drives the browser over its own debugging pipe. What the page must be able to
do is checked on the way; the first thing that is wrong ends the script with an error. Everything is taken down again.

    scripts/screenshots.py PROGRAM [FOLDER]
"""

import base64
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

PROGRAM = str(Path(sys.argv[1]).resolve())
FOLDER = Path(sys.argv[2] if len(sys.argv) > 2 else "docs/screenshots")
NODE, REST = f"edgesplice-page-{os.getpid()}-a", f"edgesplice-page-{os.getpid()}-b"
PAGE = "http://127.0.0.1:10265/"
LARGEST = 200_000  # bytes of a picture
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


def sh(*words):
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def inside(namespace, *words, **more):
    return subprocess.Popen(["ip", "netns", "exec", namespace, *words], **more)


def eventually(what, ask, limit=60):
    end = time.monotonic() + limit
    while True:
        answer = ask()
        if answer:
            return answer
        if time.monotonic() > end:
            raise SystemExit(f"not within {limit} s: {what}")
        time.sleep(0.1)


# --- the scene ---


def cluster():
    """Services of a small site: three nodes in two zones, some trouble."""
    docs = []
    zones = {"gateway-01": "hall-a", "press-02": "hall-a", "press-03": "hall-b", "camera-04": "hall-b"}
    addresses = {"gateway-01": "192.0.2.1", "press-02": "192.0.2.2", "press-03": "192.0.2.3", "camera-04": "192.0.2.4"}
    for node, zone in zones.items():
        docs.append({"apiVersion": "v1", "kind": "Node",
                     "metadata": {"name": node, "labels": {"topology.kubernetes.io/zone": zone}},
                     "status": {"addresses": [{"type": "InternalIP", "address": addresses[node]}]}})
    number = 10

    def service(namespace, name, port, protocol, backends, port_name="", **spec):
        nonlocal number
        number += 1
        docs.append({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
                     "spec": {"clusterIP": f"10.96.0.{number}", "selector": {"app": name}, **spec,
                              "ports": [{"name": port_name, "port": port, "protocol": protocol}]}})
        if backends is None:
            return
        endpoints = [{"addresses": [address], "nodeName": node, "conditions": {"ready": ready}}
                     for node, address, ready in backends]
        docs.append({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                     "metadata": {"name": f"{name}-x", "namespace": namespace,
                                  "labels": {"kubernetes.io/service-name": name}},
                     "ports": [{"name": port_name, "port": 7000, "protocol": protocol}], "endpoints": endpoints})

    at = lambda *nodes: [(node, addresses[node], True) for node in nodes]
    service("shop", "web", 80, "TCP", at("press-02", "press-03", "camera-04"), "http")
    service("shop", "cart", 8080, "TCP", at("press-02", "press-03"), "grpc-api")
    service("plant", "opc-gateway", 4840, "TCP", at("press-03"))
    service("plant", "historian", 5432, "TCP", [*at("press-02"), ("gone-05", "192.0.2.9", True)], "postgres")
    service("plant", "recipes", 443, "TCP", [("press-02", "192.0.2.2", False)], "https")
    service("plant", "vision", 8554, "TCP", at("camera-04"), "rtsp", internalTrafficPolicy="Local")
    service("plant", "broker", 1883, "TCP", at("press-02", "press-03"), "mqtt", sessionAffinity="ClientIP")
    service("plant", "clock", 123, "UDP", at("press-02"), "ntp")
    service("monitoring", "collector", 4317, "TCP", None, "otlp")
    service("kube-system", "kube-dns", 53, "UDP", at("press-02"), "dns")
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": docs})


SERVER = """
import socket, threading
def serve(address):
    listener = socket.create_server((address, 7000), backlog=256)
    while True:
        client, _ = listener.accept()
        threading.Thread(target=talk, args=(client,), daemon=True).start()
def talk(client):
    with client:
        try:
            while data := client.recv(65536):
                client.sendall(data * 6)
        except OSError:
            pass
for n in (2, 3, 4):
    threading.Thread(target=serve, args=(f"192.0.2.{n}",), daemon=True).start()
threading.Event().wait()
"""

CLIENTS = """
import random, socket, threading, time
random.seed(7)
def often(to, size, pause):
    while True:
        try:
            with socket.create_connection(to, 5) as s:
                s.sendall(b"x" * size)
                s.shutdown(socket.SHUT_WR)
                while s.recv(65536):
                    pass
        except OSError:
            pass
        time.sleep(random.uniform(0.5, 1.5) * pause)
def stays(to, size):
    while True:
        try:
            with socket.create_connection(to, 5) as s:
                while True:
                    s.sendall(b"x" * size)
                    s.recv(65536)
                    time.sleep(random.uniform(0.2, 0.6))
        except OSError:
            time.sleep(1)
work = [(often, ("10.96.0.11", 80), 900, 0.05), (often, ("10.96.0.12", 8080), 4000, 0.2), (often, ("10.96.0.14", 5432), 800, 0.4),
        (often, ("10.96.0.15", 443), 10, 1.5)]
work += [(stays, ("10.96.0.17", 1883), 300)] * 5 + [(stays, ("10.96.0.13", 4840), 2000)] * 2 + [(stays, ("10.96.0.14", 5432), 9000)] * 3
for run, *args in work:
    threading.Thread(target=run, args=args, daemon=True).start()
threading.Event().wait()
"""


class Scene:
    def __init__(self, folder):
        self.running = []
        try:
            sh("ip", "netns", "add", NODE)
            sh("ip", "netns", "add", REST)
            sh("ip", "-n", NODE, "link", "add", "lan", "type", "veth", "peer", "name", "lan", "netns", REST)
            for namespace, numbers in ((NODE, [1]), (REST, [2, 3, 4])):
                sh("ip", "-n", namespace, "link", "set", "lo", "up")
                sh("ip", "-n", namespace, "link", "set", "lan", "up")
                for number in numbers:
                    sh("ip", "-n", namespace, "address", "add", f"192.0.2.{number}/24", "dev", "lan")
            manifests = Path(folder, "cluster.json")
            manifests.write_text(cluster())
            self.start(REST, sys.executable, "-c", SERVER)
            self.agent = self.start(NODE, PROGRAM, "run", "--node-name", "gateway-01", "--manifests", str(manifests),
                                    "--state-dir", f"{folder}/state", "--service-cidr", "10.96.0.0/16", "--drain-timeout", "1s",
                                    stderr=open(f"{folder}/agent.log", "w"))
            eventually("the agent is ready", lambda: self.asked("/readyz").startswith("HTTP/1.1 200"))
            self.start(NODE, sys.executable, "-c", CLIENTS)
        except BaseException:
            self.end()
            raise

    def start(self, namespace, *words, **more):
        process = inside(namespace, *words, **more)
        self.running.append(process)
        return process

    def asked(self, path):
        request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        done = subprocess.run(
            ["ip", "netns", "exec", NODE, "bash", "-c",
             f"exec 3<>/dev/tcp/127.0.0.1/10265 && printf '{request}' >&3 && cat <&3"],
            capture_output=True, text=True, check=False)
        return done.stdout

    def end(self):
        for process in reversed(self.running):
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
        for namespace in (NODE, REST):
            subprocess.run(["ip", "netns", "delete", namespace], check=False, stderr=subprocess.DEVNULL)


# --- the browser ---


class Browser:
    """Chromium over `--remote-debugging-pipe`: JSON with a zero byte at its end, on descriptors 3 and 4."""

    def __init__(self, folder):
        there, (self.answers, back) = os.pipe(), os.pipe()
        self.questions = there[1]

        def descriptors():
            # Out of the way first, so that neither lands on the other's number.
            source, sink = os.dup(there[0]), os.dup(back)
            source, sink = [os.dup2(fd, fd + 40) for fd in (source, sink)]
            os.dup2(source, 3)
            os.dup2(sink, 4)

        self.process = inside(
            NODE, "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", f"--user-data-dir={folder}/chromium",
            "about:blank", preexec_fn=descriptors, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(there[0])
        os.close(back)
        self.number, self.waiting, self.faults = 0, {}, []
        threading.Thread(target=self.listen, daemon=True).start()
        targets = eventually("a page", lambda: [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"])
        self.session = None
        self.session = self.call("Target.attachToTarget", targetId=targets[0]["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    session = None

    def listen(self):
        rest = b""
        while data := os.read(self.answers, 1 << 20):
            *messages, rest = (rest + data).split(b"\0")
            for message in map(json.loads, messages):
                if "id" in message:
                    self.waiting[message["id"]] = message
                elif message["method"] == "Runtime.exceptionThrown":
                    self.faults.append(json.dumps(message["params"]["exceptionDetails"])[:600])
                elif message["method"] == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
                    self.faults.append(message["params"]["entry"]["text"])

    def call(self, method, **params):
        self.number += 1
        question = {"id": self.number, "method": method, "params": params}
        if self.session:
            question["sessionId"] = self.session
        os.write(self.questions, json.dumps(question).encode() + b"\0")
        answer = eventually(f"an answer to {method}", lambda: self.waiting.pop(question["id"], None), 120)
        if "error" in answer:
            raise SystemExit(f"{method}: {answer['error']}")
        return answer["result"]

    def value(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise SystemExit(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def until(self, what, expression):
        # The page may still be on its way.
        return eventually(what, lambda: self.value(f"(() => {{ try {{ return {expression}; }} catch {{ return null; }} }})()"))

    def look(self, size, scheme):
        width, height = SIZES[size]
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=size == "phone")
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme},
                                                          {"name": "prefers-reduced-motion", "value": "reduce"}])

    def press(self, key, code, text=""):
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, text=text if kind == "keyDown" else "")

    def picture(self, name, whole=False):
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole, optimizeForSpeed=False)
        data = base64.b64decode(shot["data"])
        if len(data) >= LARGEST:
            raise SystemExit(f"{name}: {len(data)} bytes, less than {LARGEST} are wanted")
        FOLDER.mkdir(parents=True, exist_ok=True)
        (FOLDER / f"{name}.png").write_bytes(data)
        print(f"{name}.png  {len(data) // 1000} kB")

    def end(self):
        self.process.terminate()
        self.process.wait(15)


def expect(holds, what):
    if not holds:
        raise SystemExit(f"wrong: {what}")
    print(f"ok  {what}")


def contrast(browser):
    """The lowest contrast of any text that is seen, by the formula of WCAG 2."""
    return browser.value("""(() => {
      const light = (c) => { const [r, g, b] = c.map((v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      const parse = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return { c: n.slice(0, 3), a: n[3] ?? 1 }; };
      let worst = [99, ''];
      for (const node of document.querySelectorAll('body *')) {
        const own = [...node.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
        if (!own || !node.checkVisibility() || node.closest('.hidden, noscript, .skip')) continue;
        let ground = node;
        while (ground && parse(getComputedStyle(ground).backgroundColor).a === 0) ground = ground.parentElement;
        const back = light(ground ? parse(getComputedStyle(ground).backgroundColor).c : [255, 255, 255]);
        const front = light(parse(getComputedStyle(node).color).c);
        const ratio = (Math.max(back, front) + 0.05) / (Math.min(back, front) + 0.05);
        if (ratio < worst[0]) worst = [ratio, node.textContent.trim().slice(0, 40)];
      }
      return worst;
    })()""")


def main():
    with tempfile.TemporaryDirectory(prefix="edgesplice-page-") as folder:
        scene = Scene(folder)
        browser = None
        try:
            browser = Browser(folder)
            browser.look("desktop", "light")
            browser.call("Page.navigate", url=PAGE)
            browser.until("the page is live", "document.getElementById('live').dataset.state === 'good'")
            browser.until("rates are known", "document.getElementById('f-traffic').textContent !== '0 B/s'")
            browser.until("this machine has been looked over", "document.getElementById('checked').textContent.includes('ago')")
            expect(browser.value("document.getElementById('node').textContent") == "gateway-01", "the node is named")
            expect(browser.value("document.querySelectorAll('#rows > tr:not(.more)').length") == 10, "every service port has a row")
            browser.until("a service is seen in trouble", "[...document.querySelectorAll('#rows .word')].some((w) => w.dataset.state === 'bad')")
            # Long enough for the curves, and for the backend that is away to have been ejected.
            browser.until("curves", "(document.querySelector('#spark-traffic .edge')?.getAttribute('d') ?? '').split('L').length > 8")
            for size in SIZES:
                for scheme in ("light", "dark"):
                    browser.look(size, scheme)
                    time.sleep(0.5)
                    browser.picture(f"{size}-{scheme}")
                    overflow = browser.value("document.documentElement.scrollWidth - document.documentElement.clientWidth")
                    expect(overflow <= 0, f"nothing hangs over the edge ({size}, {scheme})")
                    ratio, where = contrast(browser)
                    expect(ratio >= 4.5, f"every text has a contrast of 4.5 and more ({size}, {scheme}): {ratio:.2f} at {where!r}")
            browser.look("desktop", "light")
            for key in "historian":
                browser.value("document.activeElement.id === 'filter' || document.getElementById('filter').focus()")
                browser.press(key, ord(key.upper()), key)
            browser.until("the filter leaves one", "document.querySelectorAll('#rows > tr:not(.more)').length === 1")
            expect(browser.value("document.getElementById('shown').textContent").startswith("1 of 10"), "the filter says what it leaves")
            browser.value("document.querySelector('#rows .open').focus()")
            browser.press("Enter", 13, "\r")
            browser.until("a row opens by keyboard", "document.querySelector('#rows .open').getAttribute('aria-expanded') === 'true'")
            expect(browser.value("document.querySelectorAll('#rows tr.more tbody tr').length") == 2, "the row shows its backends")
            time.sleep(5)
            expect(browser.value("document.activeElement.classList.contains('open')"), "news leave the focus where it is")
            browser.value("document.getElementById('target').value = 'vision.plant:8554'; document.getElementById('ask').click()")
            browser.until("a destination is explained", "document.querySelector('#answer .word')?.textContent === 'Refused'")
            browser.value("document.getElementById('services').scrollIntoView()")
            browser.picture("desktop-light-detail")
            browser.look("phone", "light")
            browser.value("const f = document.getElementById('filter'); f.value = ''; f.dispatchEvent(new Event('input')); document.getElementById('services').scrollIntoView()")
            browser.picture("phone-light-detail")
            browser.look("desktop", "light")
            names = browser.value("['header', 'nav', 'main', 'footer', 'h1'].every((tag) => document.querySelectorAll(tag).length === 1)")
            expect(names, "the landmarks are there, each once")
            expect(browser.value("[...document.querySelectorAll('button, input')].every((n) => n.textContent.trim() || n.labels?.length)"),
                   "every control has a name")
            expect(browser.value("document.querySelectorAll('[style], script:not([src]), style').length") == 0, "no script or style stands in the page")
            expect(not browser.faults, f"the browser has nothing to complain about: {browser.faults}")
            scene.agent.terminate()
            browser.until("a lost connection is said", "document.getElementById('live').dataset.state === 'bad'")
            expect(browser.value("document.querySelectorAll('#rows > tr:not(.more)').length") == 10, "the last state stays in view")
        finally:
            if browser:
                browser.end()
            scene.end()


if os.geteuid() != 0:
    raise SystemExit("the network namespaces need root")
main()
