#!/bin/sh
# Makes ./secrets, once: what the verifiers share, Redis' password, a certificate for this machine, the first API key.
set -eu
cd "$(dirname "$0")"
umask 077
mkdir -p secrets
[ -f secrets/secret ] || openssl rand -hex 32 > secrets/secret
[ -f secrets/redis-password ] || openssl rand -hex 24 > secrets/redis-password
[ -f secrets/server.key ] || openssl req -x509 -newkey rsa:2048 -nodes -days 365 -subj /CN=localhost \
    -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout secrets/server.key -out secrets/server.pem 2>/dev/null
if [ ! -f secrets/keys.json ]; then
    if command -v pilotfish-cloud >/dev/null; then
        pilotfish-cloud keys create --tenant demo --file secrets/keys.json
    else
        docker compose build verifier-1
        docker run --rm --user "$(id -u):$(id -g)" -v "$PWD/secrets:/secrets" pilotfish-verifier \
            keys create --tenant demo --file /secrets/keys.json
    fi
fi
grep -qs '^PILOTFISH_USER=' .env || echo "PILOTFISH_USER=$(id -u):$(id -g)" >> .env
