{{- define "clearcause.labels" -}}
app.kubernetes.io/name: clearcause
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .role }}
{{- end -}}

{{/* Certificates of Dask's processes, under the names that Dask's configuration gives them. */}}
{{- define "clearcause.tls" -}}
- {name: DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION, value: "true"}
- {name: DASK_DISTRIBUTED__COMM__TLS__CA_FILE, value: /tls/ca.pem}
{{- range list "SCHEDULER" "WORKER" "CLIENT" }}
- {name: DASK_DISTRIBUTED__COMM__TLS__{{ . }}__CERT, value: /tls/certificate.pem}
- {name: DASK_DISTRIBUTED__COMM__TLS__{{ . }}__KEY, value: /tls/key.pem}
{{- end }}
{{- end -}}

{{- define "clearcause.authString" -}}
valueFrom: {secretKeyRef: {name: {{ .Values.secrets.prefect }}, key: auth-string}}
{{- end -}}

{{/*
A Deployment of one role: root, role, replicas, command, env (text), resources, and whether it speaks with Dask (dask),
computes (data), keeps Prefect's own files (prefect); worker alone has a node of its choice.
*/}}
{{- define "clearcause.deployment" -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ .root.Release.Name }}-{{ .role }}
  labels: {{- include "clearcause.labels" . | nindent 4 }}
spec:
  replicas: {{ .replicas }}
  # never two of one kind that believe they are the only one
  strategy: {type: Recreate}
  selector:
    matchLabels: {{- include "clearcause.labels" . | nindent 6 }}
  template:
    metadata:
      labels: {{- include "clearcause.labels" . | nindent 8 }}
    spec:
      automountServiceAccountToken: false
      # or Kubernetes adds variables named after services, which Prefect and Dask would take for settings
      enableServiceLinks: false
      terminationGracePeriodSeconds: 120
      securityContext:
        runAsNonRoot: true
        runAsUser: 1000
        runAsGroup: 1000
        fsGroup: 1000
        fsGroupChangePolicy: OnRootMismatch
        seccompProfile: {type: RuntimeDefault}
      {{- with .root.Values.image.pullSecret }}
      imagePullSecrets: [{name: {{ . }}}]
      {{- end }}
      {{- if eq .role "worker" }}
      {{- with .root.Values.worker.nodeSelector }}
      nodeSelector: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .root.Values.worker.tolerations }}
      tolerations: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- end }}
      containers:
        - name: {{ .role }}
          image: {{ .root.Values.image.repository }}@{{ .root.Values.image.digest }}
          args: {{- toYaml .command | nindent 12 }}
          {{- if .data }}
          workingDir: /opt/clearcause
          {{- end }}
          env:
            - {name: CLEARCAUSE_ROLE, value: {{ .role }}}
            {{- .env | nindent 12 }}
            {{- if .dask }}
            {{- include "clearcause.tls" . | nindent 12 }}
            {{- end }}
          {{- if and .data .root.Values.secrets.archives }}
          envFrom: [{secretRef: {name: {{ .root.Values.secrets.archives }}}}]
          {{- end }}
          securityContext:
            readOnlyRootFilesystem: true
            allowPrivilegeEscalation: false
            capabilities: {drop: [ALL]}
          resources: {{- toYaml .resources | nindent 12 }}
          startupProbe:
            exec: &health {command: [python3, /opt/clearcause/deploy/healthcheck.py]}
            periodSeconds: 5
            timeoutSeconds: 10
            failureThreshold: 60
          livenessProbe: {exec: *health, periodSeconds: 30, timeoutSeconds: 10, failureThreshold: 4}
          readinessProbe: {exec: *health, periodSeconds: 15, timeoutSeconds: 10}
          volumeMounts:
            - {name: scratch, mountPath: /tmp}
            - {name: home, mountPath: /home/clearcause}
            {{- if .dask }}
            - {name: tls, mountPath: /tls, readOnly: true}
            {{- end }}
            {{- if .data }}
            - {name: storage, mountPath: /data, subPath: data}
            - {name: regions, mountPath: /regions, readOnly: true}
            {{- end }}
            {{- if .prefect }}
            - {name: storage, mountPath: /prefect, subPath: prefect}
            {{- end }}
      volumes:
        - {name: scratch, emptyDir: {}}
        - {name: home, emptyDir: {}}
        {{- if .dask }}
        - {name: tls, secret: {secretName: {{ .root.Values.secrets.tls }}, defaultMode: 0440}}
        {{- end }}
        {{- if or .data .prefect }}
        - {name: storage, persistentVolumeClaim: {claimName: {{ .root.Values.storage.claim }}}}
        {{- end }}
        {{- if .data }}
        - {name: regions, configMap: {name: {{ .root.Values.regions.configMap }}}}
        {{- end }}
{{- end -}}

{{- define "clearcause.service" -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ .root.Release.Name }}-{{ .role }}
  labels: {{- include "clearcause.labels" . | nindent 4 }}
spec:
  # inside the cluster only: a browser comes through `kubectl port-forward` or a proxy of yours that speaks TLS
  type: ClusterIP
  selector: {{- include "clearcause.labels" . | nindent 4 }}
  ports:
    - {name: {{ .name }}, port: {{ .port }}, targetPort: {{ .port }}}
{{- end -}}
