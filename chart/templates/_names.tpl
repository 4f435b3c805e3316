{{- define "mkf.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* The name of most objects. 52 characters, for a StatefulSet's pods get a suffix and a label of theirs ends at 63. */}}
{{- define "mkf.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains (include "mkf.name" .) .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "mkf.name" .) | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "mkf.selectorLabels" -}}
app.kubernetes.io/name: {{ include "mkf.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "mkf.labels" -}}
{{ include "mkf.selectorLabels" . }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | trunc 63 | trimSuffix "-" | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "mkf.image" -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) }}
{{- end }}

{{/* The configuration as text; it may be given as text, as the seed's chart had it, or as YAML. */}}
{{- define "mkf.config" -}}
{{- if kindIs "string" .Values.config }}{{ .Values.config }}{{ else }}{{ toYaml .Values.config }}{{ end }}
{{- end }}

{{/* "yes" if the user brings a file of their own, by the variable that names it. */}}
{{- define "mkf.ownConfigFile" -}}
{{- range .Values.env }}{{ if eq .name "CONFIG_FILE" }}yes{{ end }}{{ end }}
{{- end }}

{{- define "mkf.configSecret" -}}
{{- if .Values.existingSecret }}{{ .Values.existingSecret }}{{ else if .Values.config }}{{ include "mkf.fullname" . }}-config{{ end }}
{{- end }}

{{- define "mkf.adminSecret" -}}
{{- .Values.auth.existingSecret | default (printf "%s-admin" (include "mkf.fullname" .)) }}
{{- end }}

{{/* The seed's logLevel followed RUST_LOG. */}}
{{- define "mkf.logLevel" -}}
{{- get (dict "trace" "debug" "warn" "warning") .Values.logLevel | default .Values.logLevel }}
{{- end }}

{{- define "mkf.scheme" -}}
{{- if .Values.tls.api.existingSecret }}https{{ else }}http{{ end }}
{{- end }}

{{/* A probe as given; over HTTPS if that is what the API speaks. Called with the root and the probe. */}}
{{- define "mkf.probe" -}}
{{- $root := index . 0 }}
{{- $probe := deepCopy (index . 1) }}
{{- if and $root.Values.tls.api.existingSecret $probe.httpGet }}
{{- $_ := set $probe.httpGet "scheme" ($probe.httpGet.scheme | default "HTTPS") }}
{{- end }}
{{- toYaml $probe }}
{{- end }}
