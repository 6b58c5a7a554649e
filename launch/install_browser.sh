#!/usr/bin/env bash
# Installs the browser for tests/browser.py: Chromium and Node with apt, unless present,
# and playwright-core into build/browser.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

packages=()
command -v chromium chromium-browser google-chrome >/dev/null || packages+=(chromium)
command -v npm >/dev/null || packages+=(nodejs npm)
if [[ ${#packages[@]} -gt 0 ]]; then
  as_root=()
  [[ $EUID -eq 0 ]] || as_root=(sudo)
  ${as_root[@]+"${as_root[@]}"} apt-get update -qq
  ${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi
npm install --silent --no-audit --no-fund --prefix build/browser playwright-core@1.65.1
