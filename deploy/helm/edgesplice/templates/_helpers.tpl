{{- define "edgesplice.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 53 | trimSuffix "-" -}}
{{- end -}}

{{- define "edgesplice.fullname" -}}
{{- $name := include "edgesplice.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "edgesplice.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "edgesplice.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "edgesplice.selectorLabels" -}}
app.kubernetes.io/name: {{ include "edgesplice.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: agent
{{- end -}}

{{- define "edgesplice.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "edgesplice.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: edgesplice
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "edgesplice.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- /* The agent's configuration file. */ -}}
{{- define "edgesplice.config" -}}
apiVersion: edgesplice.io/v1alpha1
kind: EdgespliceConfiguration
{{- with .Values.config }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "edgesplice.adminListen" -}}
{{- dig "admin" "listen" "127.0.0.1:10265" .Values.config -}}
{{- end -}}

{{- define "edgesplice.adminPort" -}}
{{- include "edgesplice.adminListen" . | splitList ":" | last -}}
{{- end -}}

{{- /* Where the kubelet's probes go: loopback where the agent listens everywhere. */ -}}
{{- define "edgesplice.adminHost" -}}
{{- $host := include "edgesplice.adminListen" . | trimSuffix (printf ":%s" (include "edgesplice.adminPort" .)) | trimPrefix "[" | trimSuffix "]" -}}
{{- if or (eq $host "0.0.0.0") (eq $host "::") -}}127.0.0.1{{- else -}}{{ $host }}{{- end -}}
{{- end -}}

{{- /* A token is mounted only where the agent may follow the API server. */ -}}
{{- define "edgesplice.mountToken" -}}
{{- $kind := dig "source" "kind" "auto" .Values.config -}}
{{- if or (eq $kind "auto") (eq $kind "kubernetes") -}}true{{- else -}}false{{- end -}}
{{- end -}}
