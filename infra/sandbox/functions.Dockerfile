# The function app on Microsoft's own host, for the compose file beside this one. Build from the repository's top.
FROM mcr.microsoft.com/azure-functions/python:4-python3.11

ENV AzureWebJobsScriptRoot=/home/site/wwwroot \
    AzureFunctionsJobHost__Logging__Console__IsEnabled=true

COPY requirements.txt /
RUN pip install --no-cache-dir -r /requirements.txt

COPY function_app.py host.json /home/site/wwwroot/
COPY shared /home/site/wwwroot/shared
