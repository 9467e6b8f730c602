{{/* Names. Short enough for what Kubernetes appends: a StatefulSet's name must leave room in its pods' labels. */}}
{{- define "blobferry.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 43 | trimSuffix "-" -}}
{{- end -}}

{{- define "blobferry.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 43 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 43 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 43 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "blobferry.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "blobferry.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "blobferry.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{- printf "%s@%s" .repository .digest -}}
{{- else -}}
{{- printf "%s:%s" .repository (default $.Chart.AppVersion .tag) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Labels. Those that select never change: a StatefulSet's selector cannot. */}}
{{- define "blobferry.selectorLabels" -}}
app.kubernetes.io/name: {{ include "blobferry.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "blobferry.labels" -}}
{{ include "blobferry.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The stores and routes, with those of the trial, as YAML. */}}
{{- define "blobferry.stores" -}}
{{- $stores := deepCopy (default dict .Values.config.stores) -}}
{{- if .Values.trialStores.enabled -}}
{{- range $name := list "primary" "backup" -}}
{{- $_ := set $stores $name (dict "endpoint" (printf "http://%s-%s:7080" (include "blobferry.fullname" $) $name)) -}}
{{- end -}}
{{- end -}}
{{- toYaml $stores -}}
{{- end -}}

{{- define "blobferry.routes" -}}
{{- $routes := deepCopy (default dict .Values.config.routes) -}}
{{- if and .Values.trialStores.enabled (not (hasKey $routes "primary_to_backup")) -}}
{{- $_ := set $routes "primary_to_backup" (dict "from" "primary" "to" "backup") -}}
{{- end -}}
{{- toYaml $routes -}}
{{- end -}}

{{/* A value as TOML. Numbers of values files are floats: written as such, no integer would be one. */}}
{{- define "blobferry.toml.value" -}}
{{- if kindIs "string" . -}}
{{- toRawJson . -}}
{{- else if kindIs "float64" . -}}
{{- if eq . (floor .) -}}{{- printf "%.0f" . -}}{{- else -}}{{- . -}}{{- end -}}
{{- else if kindIs "slice" . -}}
{{- $items := list -}}
{{- range . -}}{{- $items = append $items (include "blobferry.toml.value" .) -}}{{- end -}}
{{- printf "[%s]" (join ", " $items) -}}
{{- else if kindIs "map" . -}}
{{- $items := list -}}
{{- range $key, $value := . -}}
{{- if not (kindIs "invalid" $value) -}}
{{- $items = append $items (printf "%s = %s" $key (include "blobferry.toml.value" $value)) -}}
{{- end -}}
{{- end -}}
{{- printf "{ %s }" (join ", " $items) -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end -}}

{{/* The keys of a section; those set to null are left out. */}}
{{- define "blobferry.toml.section" -}}
{{- range $key, $value := . }}
{{- if not (kindIs "invalid" $value) }}
{{ $key }} = {{ include "blobferry.toml.value" $value }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The configuration file. */}}
{{- define "blobferry.toml" -}}
[server]
listen = "{{ .Values.listenHost }}:{{ .Values.ports.grpc }}"
http_listen = "{{ .Values.listenHost }}:{{ .Values.ports.http }}"
data_dir = "/var/lib/blobferry"
{{- include "blobferry.toml.section" (default dict .Values.config.server) }}
{{- range $name, $store := include "blobferry.stores" . | fromYaml }}

[stores.{{ $name }}]
{{- include "blobferry.toml.section" $store }}
{{- end }}
{{- range $name, $route := include "blobferry.routes" . | fromYaml }}

[routes.{{ $name }}]
{{- include "blobferry.toml.section" $route }}
{{- end }}
{{- range $name := list "retry" "queue" "tracing" "log" }}
{{- with index $.Values.config $name }}

[{{ $name }}]
{{- include "blobferry.toml.section" . }}
{{- end }}
{{- end }}
{{ end -}}

{{/* The drain deadline in seconds, rounded up. The schema admits whole numbers of ms, s, min and h. */}}
{{- define "blobferry.drainSeconds" -}}
{{- $text := get (default dict .Values.config.server) "drain_timeout" | default "25s" | replace " " "" -}}
{{- $number := regexFind "^[0-9]+" $text | int64 -}}
{{- $unit := regexFind "[a-z]+$" $text -}}
{{- if eq $unit "ms" -}}{{- div (add $number 999) 1000 -}}
{{- else if or (eq $unit "m") (eq $unit "min") -}}{{- mul $number 60 -}}
{{- else if eq $unit "h" -}}{{- mul $number 3600 -}}
{{- else -}}{{- $number -}}
{{- end -}}
{{- end -}}

{{/* From SIGTERM to SIGKILL: the drain, and then the queue is closed and the last spans are sent. */}}
{{- define "blobferry.terminationGrace" -}}
{{- if kindIs "invalid" .Values.terminationGracePeriodSeconds -}}
{{- add (include "blobferry.drainSeconds" . | int64) 20 -}}
{{- else -}}
{{- .Values.terminationGracePeriodSeconds | int64 -}}
{{- end -}}
{{- end -}}

{{/* A size such as 10Gi, 10GiB or 500M in MiB. */}}
{{- define "blobferry.mebibytes" -}}
{{- $text := . | toString | replace " " "" -}}
{{- $number := regexFind "^[0-9.]+" $text | float64 -}}
{{- $unit := regexFind "[A-Za-z]*$" $text | lower | trimSuffix "b" -}}
{{- $factors := dict "" 0.00000095367431640625 "k" 0.00095367431640625 "ki" 0.0009765625 "m" 0.95367431640625 "mi" 1 "g" 953.67431640625 "gi" 1024 "t" 953674.31640625 "ti" 1048576 -}}
{{- mulf $number (get $factors $unit | default 1) -}}
{{- end -}}

{{/* What the schema cannot say: every problem at once, and what to do. */}}
{{- define "blobferry.validate" -}}
{{- $problems := list -}}
{{- $stores := include "blobferry.stores" . | fromYaml -}}
{{- $routes := include "blobferry.routes" . | fromYaml -}}
{{- $names := keys $stores | sortAlpha | join ", " | default "none" -}}
{{- if not $routes -}}
{{- $problems = append $problems "config.routes: no route is configured (set config.stores and config.routes, or trialStores.enabled=true to try it with two stores of its own)" -}}
{{- end -}}
{{- range $name, $store := .Values.config.stores -}}
{{- if not (regexMatch "^https?://[^/]+/?$" $store.endpoint) -}}
{{- $problems = append $problems (printf "config.stores.%s.endpoint: is %q (write it as http://HOST:PORT or https://HOST:PORT)" $name $store.endpoint) -}}
{{- end -}}
{{- end -}}
{{- range $section := list "stores" "routes" -}}
{{- range $name := keys (default dict (index $.Values.config $section)) | sortAlpha -}}
{{- if not (regexMatch "^[a-z][a-z0-9_]*$" $name) -}}
{{- $problems = append $problems (printf "config.%s.%s: is no name (use small letters, digits and _, and a letter first)" $section $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $name, $route := $routes -}}
{{- range $end := list "from" "to" -}}
{{- $store := get $route $end -}}
{{- if not (hasKey $stores $store) -}}
{{- $problems = append $problems (printf "config.routes.%s.%s: there is no store %q (in config.stores are: %s)" $name $end $store $names) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if .Values.trialStores.enabled -}}
{{- range $name := list "primary" "backup" -}}
{{- if hasKey (default dict $.Values.config.stores) $name -}}
{{- $problems = append $problems (printf "config.stores.%s: is the name of a trial store (give yours another name, or set trialStores.enabled=false)" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if eq (int .Values.ports.grpc) (int .Values.ports.http) -}}
{{- $problems = append $problems (printf "ports.http: is %d, as ports.grpc is (give it a port of its own)" (int .Values.ports.http)) -}}
{{- end -}}
{{- if and .Values.persistence.existingClaim (not .Values.persistence.enabled) -}}
{{- $problems = append $problems "persistence.existingClaim: is set while persistence.enabled is false (remove one of the two)" -}}
{{- end -}}
{{- $reserve := get (default dict .Values.config.queue) "reserve_bytes" | default "1GiB" -}}
{{- if and .Values.persistence.enabled (not .Values.persistence.existingClaim) (ge (include "blobferry.mebibytes" $reserve | float64) (include "blobferry.mebibytes" .Values.persistence.size | float64)) -}}
{{- $problems = append $problems (printf "config.queue.reserve_bytes: is %v, and the whole volume has %s, so that every announcement would be refused (lower it, or raise persistence.size)" $reserve .Values.persistence.size) -}}
{{- end -}}
{{- if not (regexMatch "^[0-9]+ ?(ms|s|m|min|h)$" (get (default dict .Values.config.server) "drain_timeout" | default "25s")) -}}
{{- $problems = append $problems "config.server.drain_timeout: the grace period is made of it (write it as one whole number of ms, s, min or h, such as 25s)" -}}
{{- end -}}
{{- $least := add (include "blobferry.drainSeconds" . | int64) 10 -}}
{{- if lt (include "blobferry.terminationGrace" . | int64) $least -}}
{{- $problems = append $problems (printf "terminationGracePeriodSeconds: copies in flight may take config.server.drain_timeout to end, and the queue is closed after that (set at least %d, or leave it out)" $least) -}}
{{- end -}}
{{- range .Values.extraEnv -}}
{{- if has .name (list "BLOBFERRY__SERVER__LISTEN" "BLOBFERRY__SERVER__HTTP_LISTEN" "BLOBFERRY__SERVER__DATA_DIR" "BLOBFERRY__SERVER__DRAIN_TIMEOUT" "BLOBFERRY_REPLICATOR") -}}
{{- $problems = append $problems (printf "extraEnv: %s is the chart's own, since probes, the service and the volume go by it (set ports.grpc, ports.http, listenHost or config.server.drain_timeout)" .name) -}}
{{- end -}}
{{- end -}}
{{- range .Values.extraArgs -}}
{{- if regexMatch "server\\.(listen|http_listen|data_dir|drain_timeout)=" . -}}
{{- $problems = append $problems (printf "extraArgs: %s is the chart's own, since probes, the service and the volume go by it (set ports.grpc, ports.http, listenHost or config.server.drain_timeout)" .) -}}
{{- end -}}
{{- end -}}
{{- if $problems -}}
{{- fail (printf "the values make no sense:\n- %s\n" (join "\n- " $problems)) -}}
{{- end -}}
{{- end -}}

{{/* Where spans go, and whose they are. What is given as extraEnv wins: a variable must not be there twice. */}}
{{- define "blobferry.otelEnv" -}}
{{- $given := list -}}
{{- range .given }}{{ $given = append $given .name }}{{ end -}}
{{- if .root.Values.otlpEndpoint }}
{{- if not (has "OTEL_EXPORTER_OTLP_ENDPOINT" $given) }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ .root.Values.otlpEndpoint | quote }}
{{- end }}
{{- if .service }}
- name: OTEL_SERVICE_NAME
  value: {{ .service | quote }}
{{- end }}
{{- if not (has "OTEL_RESOURCE_ATTRIBUTES" $given) }}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: OTEL_RESOURCE_ATTRIBUTES
  value: k8s.namespace.name={{ .root.Release.Namespace }},k8s.pod.name=$(POD_NAME)
{{- end }}
{{- end }}
{{- end -}}
