#!/usr/bin/env bash
# The main job, shown: a pod and the host of node a reach nginx on node b by its ClusterIP. The nodes share a LAN and
# nothing else: no pod network between them, and node a has no default route.
#
# Everything happens in network namespaces of its own and is taken down again, however this ends.
# Exit 0 only if each answer was right. BACKEND=nft|legacy picks the iptables programs.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PATH:/usr/sbin:/sbin:${CARGO_HOME:-$HOME/.cargo}/bin"
program=$PWD/target/release/edgesplice
cluster=$PWD/tests/fixtures/first-light.yaml
backend=${BACKEND:-nft}
case $backend in nft | legacy) ;; *)
    echo "BACKEND is nft or legacy, not '$backend'" >&2
    exit 64
    ;;
esac

if [ "${1:-}" != --built ]; then
    scripts/setup.sh demo
    cargo build --locked --release
    if [ "$(id -u)" -ne 0 ]; then
        exec sudo BACKEND="$backend" "$0" --built
    fi
fi

# ---- words on the screen

wrong=0
total=0
heading() { printf '\n%s\n%s\n' "$*" "$(printf '%s' "$*" | sed 's/./=/g')"; }
indent() { sed 's/^/    /'; }
# judge WHETHER_RIGHT WHAT
judge() {
    total=$((total + 1))
    if [ "$1" = yes ]; then
        printf '  right: %s\n' "$2"
    else
        wrong=$((wrong + 1))
        printf '  WRONG: %s\n' "$2"
    fi
}

# ---- the stage: a and b are nodes, client and web are pods

stage=edgesplice-demo-$$
home=$(mktemp -d "${TMPDIR:-/tmp}/edgesplice-demo-XXXXXX")
pids=()
on() { ip netns exec "$stage-$1" "${@:2}"; }

# start LOG NODE PROGRAM…: in the background, as a process group of its own.
start() {
    setsid ip netns exec "$stage-$2" "${@:3}" >"$1" 2>&1 </dev/null &
    pids+=("$!")
}

take_down() {
    trap - EXIT INT TERM HUP
    for pid in "${pids[@]}"; do kill -KILL -- "-$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    for place in client a b web lan; do
        ip netns delete "$stage-$place" 2>/dev/null || true
        rm -rf "/etc/netns/$stage-$place"
    done
    rmdir --ignore-fail-on-non-empty /etc/netns 2>/dev/null || true
    rm -rf "$home"
}
trap take_down EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

for place in lan a b client web; do
    ip netns add "$stage-$place"
    on "$place" sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
    ip -n "$stage-$place" link set lo up
done
ip -n "$stage-lan" link add lan type bridge forward_delay 0
ip -n "$stage-lan" link set lan up

# node NAME NUMBER POD
node() {
    local node=$stage-$1 n=$2 pod=$stage-$3
    on "$1" sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
    ip -n "$node" link add eth0 type veth peer name "port$n" netns "$stage-lan"
    ip -n "$stage-lan" link set "port$n" master lan up
    ip -n "$node" addr add "192.168.77.$n/24" dev eth0
    ip -n "$node" addr add "fd77::$n/64" dev eth0 nodad
    ip -n "$node" link set eth0 up
    ip -n "$node" link add veth0 type veth peer name eth0 netns "$pod"
    ip -n "$node" addr add "10.244.$n.1/24" dev veth0
    ip -n "$node" addr add "fd44:$n::1/64" dev veth0 nodad
    ip -n "$node" link set veth0 up
    ip -n "$pod" addr add "10.244.$n.2/24" dev eth0
    ip -n "$pod" addr add "fd44:$n::2/64" dev eth0 nodad
    ip -n "$pod" link set eth0 up
    ip -n "$pod" route add default via "10.244.$n.1"
    ip -n "$pod" route add default via "fd44:$n::1"
}
node a 1 client
node b 2 web

# What the portmap plugin does for `hostPort: 8080`.
publish() {
    printf '%s\n' '*nat' ':CNI-HOSTPORT-DNAT - [0:0]' \
        '-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT' \
        "-A CNI-HOSTPORT-DNAT -p tcp --dport 8080 -j DNAT --to-destination $2" COMMIT |
        on b "$1-$backend-restore" --noflush
}
publish iptables 10.244.2.2:80
publish ip6tables '[fd44:2::2]:80'

mkdir -p "$home/manifests" "$home/nginx"
cp "$cluster" "$home/manifests/"
# Names as the kubelet of any cluster sets them up in pods: the cluster's DNS address, which nobody runs here. The
# host's own resolver is told of the agent, and has an upstream server on node b.
cat >"$home/manifests/kube-dns.yaml" <<'YAML'
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system, labels: {k8s-app: kube-dns}}
spec:
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10]
  ports:
  - {name: dns, port: 53, protocol: UDP, targetPort: 53}
  - {name: dns-tcp, port: 53, protocol: TCP, targetPort: 53}
YAML
mkdir -p "/etc/netns/$stage-client" "/etc/netns/$stage-a"
cat >"/etc/netns/$stage-client/resolv.conf" <<'RESOLV'
search default.svc.cluster.local svc.cluster.local cluster.local lan
nameserver 10.96.0.10
options ndots:5
RESOLV
cat >"/etc/netns/$stage-a/resolv.conf" <<'RESOLV'
nameserver 169.254.96.16
nameserver 192.168.77.2
RESOLV
# The upstream server: it knows one name, www.example.test, and says so for five seconds.
cat >"$home/upstream.pl" <<'PERL'
use Socket;
socket(my $s, PF_INET, SOCK_DGRAM, 0) or die "$!";
bind($s, sockaddr_in(53, INADDR_ANY)) or die "$!";
while (my $from = recv($s, my $q, 512, 0)) {
    my $end = index($q, "\0", 12) + 5;
    my $known = substr($q, 12, $end - 12) =~ /^\x03www\x07example\x04test\0\0\x01\0\x01$/i;
    my $a = substr($q, 0, 2) . ($known ? "\x81\x80\0\1\0\1\0\0\0\0" : "\x81\x83\0\1\0\0\0\0\0\0") . substr($q, 12, $end - 12);
    $a .= "\xc0\x0c\0\1\0\1\0\0\0\5\0\4" . inet_aton("192.168.77.2") if $known;
    send($s, $a, 0, $from);
}
PERL
start "$home/upstream.log" b perl "$home/upstream.pl"
upstream=${pids[-1]}
cat >"$home/nginx.conf" <<CONF
daemon off;
user root;
pid $home/nginx/pid;
error_log stderr;
events {}
http {
  access_log off;
  client_body_temp_path $home/nginx; proxy_temp_path $home/nginx; fastcgi_temp_path $home/nginx;
  uwsgi_temp_path $home/nginx; scgi_temp_path $home/nginx;
  server { listen 80; listen [::]:80; root /usr/share/nginx/html; }
}
CONF
start "$home/nginx.log" web nginx -e stderr -c "$home/nginx.conf"

rules() {
    for tables in iptables ip6tables; do
        on a "$tables-$backend-save" | grep -v '^#' | sed 's/ \[[0-9]*:[0-9]*\]$//' || true
    done
    on a ipset save | grep '^create' | sed 's/ initval [^ ]*//' || true
}
# Everything that a node agent could leave behind. A table with nothing in it does nothing and does not count.
state() {
    rules | grep -vE '^(\*|COMMIT|:[A-Z]+ ACCEPT)' || true
    for family in -4 -6; do
        on a ip "$family" rule
        on a ip "$family" route show table all
    done
    on a ip -o link | cut -d: -f2-
    on a ip -o addr | sed 's/valid_lft.*//'
}

heading "The stage"
cat <<STAGE
  node a  192.168.77.1 fd77::1     pod client  10.244.1.2 fd44:1::2
  node b  192.168.77.2 fd77::2     pod web     10.244.2.2 fd44:2::2   nginx, published as hostPort 8080
  Service nginx-svc  10.96.191.183 and fd00:10:96::b7, port 12345
  Service kube-dns   10.96.0.10, which pods have as their name server, and nobody runs
  Node a has no default route, and no way to the pods of node b:
STAGE
on a ip route | indent
for try in $(seq 100); do
    on a curl -gsS --max-time 1 -o "$home/page" http://192.168.77.2:8080/ 2>/dev/null && break
    [ "$try" -lt 100 ] || { echo "nginx does not answer:" && cat "$home/nginx.log" && exit 1; }
    sleep 0.1
done

heading "Node a before: rules ($backend), and a request"
rules | grep -c '^-A' | sed 's/^/  rules: /' || true
state >"$home/before"
# ask PLACE WHERE URL [FLAG…]: prints the request and judges nginx's page.
ask() {
    local place=$1 where=$2 url=$3 answer
    printf '\n  %s $ curl %s\n' "$where" "${*:4}${4:+ }$url"
    if answer=$(on "$place" curl -gsS --noproxy '*' --max-time 5 "${@:4}" "$url" 2>&1); then
        grep -E '<title>|<h1>' <<<"$answer" | indent
    else
        indent <<<"$answer"
    fi
    case $answer in
    *"Welcome to nginx!"*) judge yes "nginx's page" ;;
    *) judge no "this is not nginx's page" ;;
    esac
}
printf '\n  host of a $ curl http://10.96.191.183:12345/\n'
if answer=$(on a curl -sS --max-time 2 http://10.96.191.183:12345/ 2>&1); then
    judge no "something answers before the agent runs"
else
    indent <<<"$answer"
    judge yes "no way, as it should be without the agent"
fi

heading "The agent starts on node a"
cidrs=10.96.0.0/16,fd00:10:96::/112
run=("$program" run --node-name a --manifests "$home/manifests" --state-dir "$home/state"
    --service-cidr "$cidrs" --iptables-backend "$backend" --admin 127.0.0.1:10265)
printf '  $ edgesplice %s\n' "${run[*]:1}"
start "$home/agent.log" a "${run[@]}"
agent=${pids[-1]}
for try in $(seq 200); do
    on a curl -fsS --max-time 1 http://127.0.0.1:10265/readyz >/dev/null 2>&1 && break
    if [ "$try" -eq 200 ] || ! kill -0 "$agent" 2>/dev/null; then
        echo "  it does not become ready; its log:"
        indent <"$home/agent.log"
        exit 1
    fi
    sleep 0.05
done
echo "  ready"

heading "The service, from a pod and from the host, IPv4 and IPv6"
for where in "client:pod on a" "a:host of a "; do
    ask "${where%%:*}" "${where#*:}" "http://10.96.191.183:12345/"
    ask "${where%%:*}" "${where#*:}" "http://[fd00:10:96::b7]:12345/"
done

heading "The service by its name: a pod with the kubelet's own resolv.conf (ndots:5), and the host"
indent <"/etc/netns/$stage-client/resolv.conf"
by_name() {
    for url in http://nginx-svc:12345/ http://nginx-svc.default.svc.cluster.local:12345/; do
        ask client "pod on a" "$url"
    done
    ask client "pod on a" http://nginx-svc.default.svc.cluster.local:12345/ -6
    ask a "host of a " http://nginx-svc.default.svc.cluster.local:12345/
}
by_name
heading "A foreign name, asked of the host's own DNS server"
ask a "host of a " http://www.example.test:8080/
heading "The same with that DNS server dead, and after the answer's time: the cluster is gone, the node goes on"
{ kill -KILL -- "-$upstream" && wait "$upstream"; } 2>/dev/null || true
sleep 5.5
by_name
ask a "host of a " http://www.example.test:8080/

heading "What is not served is refused at once"
# refuse PROTOCOL ADDRESS PORT WHAT
refuse() {
    local place where said
    for where in "client:pod on a" "a:host of a "; do
        place=${where%%:*}
        printf '\n  %s $ connect %s %s %s   (%s)\n' "${where#*:}" "$1" "$2" "$3" "$4"
        # Over UDP the refusal comes back with the read.
        # shellcheck disable=SC2016
        said=$(on "$place" timeout 2 bash -c \
            'exec 3<>"/dev/$0/$1/$2" && if [ "$0" = udp ]; then echo ? >&3; read -r -t 1 -u 3; fi' \
            "$1" "$2" "$3" 2>&1) && said="connected"
        said=${said:-no answer}
        tail -n 1 <<<"$said" | sed 's/^bash: //; s/^[^:]*: line [0-9]*: //' | indent
        case $said in *"Connection refused"*) judge yes "refused" ;; *) judge no "not refused" ;; esac
    done
}
refuse tcp 10.96.0.20 80 "a service that nobody runs"
refuse tcp fd00:10:96::20 80 "the same, IPv6"
refuse tcp 10.96.191.183 9999 "a port that the service does not have"
refuse tcp 10.96.200.200 80 "an address that is no service"
refuse tcp 10.96.0.30 80 "internalTrafficPolicy: Local, and it runs elsewhere"
refuse udp 10.96.0.20 53 "a UDP service that nobody runs"

heading "What the agent says"
on a "$program" status | indent

heading "Node a while the agent runs: rules"
rules | grep -E '^(-A|create)' | indent

heading "SIGTERM"
kill -TERM "$agent"
code=0
wait "$agent" || code=$?
pids=("${pids[@]:0:${#pids[@]}-1}")
if [ "$code" -eq 0 ]; then judge yes "the agent ended with exit code 0"; else
    judge no "the agent ended with exit code $code; its log:"
    indent <"$home/agent.log"
fi
state >"$home/after"
if diff "$home/before" "$home/after" >"$home/diff"; then
    judge yes "rules, sets, routes, links and addresses are as before"
else
    judge no "something is left:"
    indent <"$home/diff"
fi

heading "Taken down"
take_down
if ip netns list | grep -q "^$stage-"; then judge no "a namespace is left"; else
    judge yes "no namespace, process or file is left"
fi
printf '\n%d of %d answers were right.\n' $((total - wrong)) "$total"
[ "$wrong" -eq 0 ]
