#!/bin/sh
# Writes the parts of nginx.conf that depend on the environment, before nginx starts (docker-compose.yml): the host names
# it serves, the load balancers it trusts, and TLS.
set -eu
out=/tmp/nginx
mkdir -p "$out"

# words NAME VALUE: prints the comma-separated words of VALUE, one per line; exits at one that could end a directive.
words() {
  printf '%s\n' "$2" | tr -s ', ' '\n' | while IFS= read -r word; do
    case $word in
      '') ;;
      *[!A-Za-z0-9.:/_-]*)
        echo "$1 is invalid: \"$word\" is neither a host name nor an address." >&2
        exit 1
        ;;
      *) echo "$word" ;;
    esac
  done
}

hosts=$(words ALLOWED_HOSTS "${ALLOWED_HOSTS:-}")
[ -n "$hosts" ] || { echo 'ALLOWED_HOSTS is empty; set it to the host names to serve.' >&2; exit 1; }
{ echo server_name; echo "$hosts"; echo ';'; } >"$out/names.conf"

proxies=$(words REAL_IP_FROM "${REAL_IP_FROM:-}")
for proxy in $proxies; do echo "set_real_ip_from $proxy;"; done >"$out/real-ip.conf"
for proxy in $proxies; do echo "$proxy 1;"; done >"$out/balancers.conf"

if [ -s /etc/nginx/tls/tls.crt ] && [ -s /etc/nginx/tls/tls.key ]; then
  cat >"$out/tls.conf" <<'CONF'
listen 8443 ssl;
http2 on;
ssl_certificate /etc/nginx/tls/tls.crt;
ssl_certificate_key /etc/nginx/tls/tls.key;
CONF
  printf 'listen 8443 ssl default_server;\nssl_reject_handshake on;\n' >"$out/tls-unknown.conf"
else
  : >"$out/tls.conf"
  : >"$out/tls-unknown.conf"
fi
