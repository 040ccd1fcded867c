// The function app on Flex Consumption, and all of its settings.
param location string
param tags object
param planName string
param name string
param identityId string
param identityClientId string
param subnetId string
param blobEndpoint string
param queueEndpoint string
param tableEndpoint string
param deploymentContainer string
param insightsConnectionString string
param keyVaultName string
param digestKeyName string
param auditName string
param configUrl string
param logLevel string
param plainSettings object
param keyVaultSettings object
param pythonVersion string
param instanceMemoryMB int
param maximumInstanceCount int
param alwaysReadyVaults array

var fixedSettings = {
  AzureWebJobsStorage__credential: 'managedidentity'
  AzureWebJobsStorage__clientId: identityClientId
  AzureWebJobsStorage__blobServiceUri: blobEndpoint
  AzureWebJobsStorage__queueServiceUri: queueEndpoint
  AzureWebJobsStorage__tableServiceUri: tableEndpoint
  APPLICATIONINSIGHTS_CONNECTION_STRING: insightsConnectionString
  APPLICATIONINSIGHTS_AUTHENTICATION_STRING: 'ClientId=${identityClientId};Authorization=AAD'
  // By this the identity is found wherever the configuration says `auth: {method: default}`.
  AZURE_CLIENT_ID: identityClientId
  VAULTFERRY_STORE: 'tables'
  VAULTFERRY_LOG_LEVEL: logLevel
  VAULTFERRY_DIGEST_KEY: '@Microsoft.KeyVault(VaultName=${keyVaultName};SecretName=${digestKeyName})'
}
var auditSettings = empty(auditName) ? {} : {
  VAULTFERRY_AUDIT_SECRET: '@Microsoft.KeyVault(VaultName=${keyVaultName};SecretName=${auditName})'
}
var configSettings = empty(configUrl) ? {} : {
  VAULTFERRY_CONFIG: configUrl
}
var references = toObject(items(keyVaultSettings), entry => entry.key, entry => '@Microsoft.KeyVault(VaultName=${keyVaultName};SecretName=${entry.value})')

resource plan 'Microsoft.Web/serverfarms@2024-11-01' = {
  name: planName
  location: location
  tags: tags
  kind: 'functionapp'
  sku: {
    tier: 'FlexConsumption'
    name: 'FC1'
  }
  properties: {
    reserved: true
  }
}

resource site 'Microsoft.Web/sites@2024-11-01' = {
  name: name
  location: location
  tags: union(tags, {
    'azd-service-name': 'vaultferry'
  })
  kind: 'functionapp,linux'
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: {
      '${identityId}': {}
    }
  }
  properties: {
    serverFarmId: plan.id
    httpsOnly: true
    keyVaultReferenceIdentity: identityId
    virtualNetworkSubnetId: empty(subnetId) ? null : subnetId
    // Nothing of FTP: Flex Consumption has none, and refuses to be told so.
    siteConfig: {
      minTlsVersion: '1.2'
      scmMinTlsVersion: '1.2'
    }
    functionAppConfig: {
      deployment: {
        storage: {
          type: 'blobContainer'
          value: '${blobEndpoint}${deploymentContainer}'
          authentication: {
            type: 'UserAssignedIdentity'
            userAssignedIdentityResourceId: identityId
          }
        }
      }
      runtime: {
        name: 'python'
        version: pythonVersion
      }
      scaleAndConcurrency: {
        instanceMemoryMB: instanceMemoryMB
        maximumInstanceCount: maximumInstanceCount
        // The names that function_app.py gives to writers.
        alwaysReady: [for id in alwaysReadyVaults: {
          name: 'function:write_${replace(id, '-', '_')}'
          instanceCount: 1
        }]
      }
    }
  }
}

resource settings 'Microsoft.Web/sites/config@2024-11-01' = {
  parent: site
  name: 'appsettings'
  properties: union(plainSettings, references, configSettings, auditSettings, fixedSettings)
}

// Publishing goes by Entra only.
resource noBasicScm 'Microsoft.Web/sites/basicPublishingCredentialsPolicies@2024-11-01' = {
  parent: site
  name: 'scm'
  properties: {
    allow: false
  }
}

output name string = site.name
output hostName string = site.properties.defaultHostName
