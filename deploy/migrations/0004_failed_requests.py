"""How many requests of the probe traffic failed while a deployment was carried out.

A column that may be null: SQLite adds it without making the table anew, so the triggers of 0002_guards stay.
"""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("deploy", "0003_environments")]
    operations = [
        migrations.AddField(
            model_name="deployment",
            name="failed_requests",
            field=models.PositiveIntegerField(
                blank=True,
                null=True,
                help_text="How many of the probe traffic's requests failed while it was carried out.",
            ),
        )
    ]
